"""The site builds without a warning, and loads nothing from elsewhere."""

import html.parser
import re
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

pytest.importorskip("sphinx")
pytest.importorskip("furo")

LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src",
         "audio": "src", "video": "src", "object": "data", "embed": "src",
         "image": "href"}  # fmt: skip


class Loads(html.parser.HTMLParser):
    """What a page loads by itself; links that somebody may follow are not among it."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if (name := LOADS.get(tag)) and values.get(name) and values.get("rel") != "canonical":
            self.found.append(values[name])


def loads(text: str) -> list[str]:
    page = Loads()
    page.feed(text)
    return page.found + re.findall(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", text)


def foreign(found) -> list[str]:
    flat = [part for each in found for part in ([each] if isinstance(each, str) else each)]
    return [part for part in flat if re.match(r"\s*(https?:)?//", part)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", f"{out}-trees"]
    result = subprocess.run(
        [*command, str(ROOT / "docs"), str(out)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return out


def test_no_page_loads_anything_from_another_host(site):
    pages = [*site.rglob("*.html"), *site.rglob("*.css"), *site.rglob("*.svg")]
    assert len(pages) > 30
    for page in pages:
        assert foreign(loads(page.read_text())) == [], page


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://a.org/x.js"></script>',
        '<link rel="stylesheet" href="//a.org/x.css">',
        "<style>@font-face { src: url('https://a.org/f.woff2') }</style>",
        '<style>@import "https://a.org/x.css"</style>',
    ],
)
def test_a_load_from_another_host_would_be_found(text):
    assert foreign(loads(text))
    assert not foreign(loads('<a href="https://a.org">a</a><img src="x.png">'))


def test_what_is_made_is_there(site):
    commands = (site / "generated/command-line.html").read_text()
    assert "--cfg-coef-beta" in commands
    assert "musicgen-jax train lm" in commands
    routes = (site / "generated/http.html").read_text()
    assert "/v1/audio/generate" in routes
    assert "Retry-After" in routes or "X-Program" in routes
    assert "use_adapter" in (site / "api.html").read_text()
    llms = (site / "llms.txt").read_text()
    for page in ROOT.glob("docs/*.md"):
        if page.name != "index.md":
            assert f"({page.name})" in llms
            assert (site / page.name).is_file()
