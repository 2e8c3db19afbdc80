"""The site: `sphinx-build -W docs site` with the extra [docs]."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402

from musicgen_jax import __version__  # noqa: E402

project = "musicgen_jax"
version = release = __version__
author = "The musicgen_jax project"
project_copyright = "MIT licence"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4
nitpicky = False  # types of other packages have no page here

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"musicgen_jax {version}"
html_copy_source = False
html_show_sourcelink = False
# Furo's default footer and its view/edit links name other hosts.
html_theme_options = {"footer_icons": [], "top_of_page_buttons": []}

generate.write()


def setup(app):
    """Links to files outside docs/ lead to the pages made of them; llms.txt is written last."""
    app.connect("source-read", _links)
    app.connect("build-finished", _llms)


def _links(app, docname, source):
    if not docname.startswith("generated/"):
        source[0] = generate.inside(source[0])


def _llms(app, exception):
    if exception is None and app.builder.name == "html":
        out = Path(app.outdir)
        (out / "llms.txt").write_text(generate.llms(), encoding="utf-8")
        for page in generate.index():  # llms.txt names the pages as they were written
            (out / page).write_text(generate.inside((HERE / page).read_text("utf-8")), "utf-8")
