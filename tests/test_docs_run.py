"""The Python of README and docs/ runs, page by page, on the bundled model.

The blocks of a page share their names, as somebody who types them in sees them. A block after the
comment `<!-- not run: why -->` is left out.
"""

import re
from functools import cache

import numpy as np
import pytest

from musicgen_jax import MusicGen, audio
from tests.helpers.paths import ROOT

BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n+)?^```python\n(.*?)^```", re.M | re.S)
PAGES = [
    page
    for page in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
    if any(not skipped for skipped, _ in BLOCK.findall(page.read_text()))
]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with the files that the pages read, and one nano for all pages."""
    monkeypatch.chdir(tmp_path)
    sine = 0.3 * np.sin(2 * np.pi * 220 * np.arange(32000) / 16000, dtype=np.float32)
    for name in ("waltz.wav", "song.wav"):
        audio.write(tmp_path / name, sine[None], 16000)
    monkeypatch.setattr(MusicGen, "from_pretrained", _loaded)


_from_pretrained = MusicGen.from_pretrained


@cache
def _loaded(name, **options):
    return _from_pretrained(name, **options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page):
    names: dict = {"__name__": "__main__"}
    for skipped, code in BLOCK.findall(page.read_text()):
        if not skipped:
            exec(compile(code, str(page), "exec"), names)
