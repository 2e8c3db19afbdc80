"""The page of a report: what it shows, and that nothing in it is taken for markup."""

import html.parser
import struct
import zlib

import numpy as np
import pytest

from musicgen_jax import audio
from musicgen_jax.metrics import page
from musicgen_jax.metrics.report import escaped, markdown, summary
from musicgen_jax.metrics.spectrogram import HEIGHT, WIDTH, png

NASTY = "</script><img src=x onerror='alert(1)'>&\"`|*"


def side(place, **more):
    return {"path": place, "clips": 1, "measured": 1, "identity": "ab" * 32, "skipped": []} | more


def report(rows, **more):
    figure = {"value": 0.5, "protocol": "fadtk", "embedding": NASTY, "weights": None, "clips": 2,
              "rows": 2, "pairs": 2, "definition": NASTY}  # fmt: skip
    return {
        "metrics": {"chroma": figure},
        "not_computed": {"kld": NASTY},
        "warnings": [NASTY],
        "audio": side(NASTY, skipped=[{"id": NASTY, "reason": NASTY}]),
        "reference": side(NASTY),
        "clips": rows,
        "versions": {"jax": "1"},
    } | more


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes, every text, and the order of the clips."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)
        self.ids = [a["data-id"] for tag, a in self.tags if tag == "tr" and "data-id" in a]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def clips(tmp_path):
    rng = np.random.default_rng(0)
    files = {}
    for name in ("a", NASTY.replace("/", "|")):
        files[name] = tmp_path / "from" / f"{len(files)}.wav"
        audio.write(files[name], rng.normal(0, 0.1, (2, 9000)).astype(np.float32), 16000)
    return files


def test_nothing_is_taken_for_markup(tmp_path, clips):
    rows = [{"id": name, "chroma": 0.5} for name in clips]
    texts = dict.fromkeys(clips, NASTY)
    file = page.write(tmp_path, report(rows, model={"name": NASTY}), clips, clips, texts)
    found = Tags(file.read_text())
    assert [tag for tag, _ in found.tags].count("script") == 1
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(images) == 4  # two sides of two clips: the one in the texts is a text
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert all("onerror" not in attributes for _, attributes in found.tags)
    assert sum(NASTY in text for text in found.texts) >= 6
    sources = {attributes["src"] for tag, attributes in found.tags if tag == "audio"}
    assert len(sources) == 2  # the same clip lies there once
    for source in sources:
        assert audio.read(tmp_path / source)[0].shape == (2, 9000)
    assert "http" not in file.read_text()


def test_a_markdown_report_shows_text_as_it_is():
    text = markdown(report([]))
    assert escaped(NASTY) in text
    assert escaped("a\nb") == "a b"


def test_the_fad_of_infinitely_many_clips(tmp_path):
    found = {"value": 1.5, "interval": [1.0, 2.0], "r_squared": 0.99}
    for infinity, shown in ((found, True), ({"value": None, "reason": "few"}, False)):
        figure = report([])["metrics"]["chroma"] | {"infinity": infinity, "reference_rows": 2}
        some = report([], metrics={"fad": figure})
        text = page.write(tmp_path, some, {}, {}, {}).read_text()
        assert ("1.5 (1 to 2), R^2 0.990" in text) == shown
        assert ("1.5 (1 to 2), R^2 0.990" in markdown(some)) == shown
        assert ("1.5 (1 to 2), R^2 0.990" in summary(some)) == shown


def test_the_worst_clips_come_first(tmp_path, clips):
    a, b = clips
    for metric, better in (("chroma", 0.9), ("kld", 0.1)):
        rows = [{"id": a, metric: better}, {"id": b, metric: 0.5}]
        found = Tags(page.write(tmp_path, report(rows), clips, {}, {}).read_text())
        assert found.ids == [b, a]


def test_of_a_large_set_both_ends_can_be_heard():
    rows = [{"id": f"{i:03}", "chroma": i / 300, "fad": float(i % 7)} for i in range(300)]
    shown = page.chosen(rows)
    assert {"000", "024", "275", "299"} <= shown
    assert 50 <= len(shown) <= 100
    assert page.chosen(rows[:100]) == {row["id"] for row in rows[:100]}
    assert len(page.chosen([{"id": str(i)} for i in range(300)])) == 100


def test_formats_that_browsers_do_not_play_are_converted(tmp_path):
    import soundfile

    (tmp_path / "from").mkdir()
    wav = np.random.default_rng(0).normal(0, 0.1, (5000, 1)).astype(np.float32)
    soundfile.write(tmp_path / "from/a.aiff", wav, 16000)
    files = {"a": tmp_path / "from/a.aiff"}
    page.write(tmp_path, report([{"id": "a", "chroma": 1.0}]), files, {}, {})
    (made,) = (tmp_path / "audio").iterdir()
    assert made.suffix == ".flac"
    np.testing.assert_allclose(audio.read(made)[0][0], wav[:, 0], atol=1e-4)


def test_a_clip_that_is_gone_leaves_its_row(tmp_path):
    files = {"a": tmp_path / "gone.wav"}
    found = Tags(
        page.write(tmp_path, report([{"id": "a", "chroma": 1.0}]), files, {}, {}).read_text()
    )
    assert found.ids == ["a"]
    assert "audio" not in [tag for tag, _ in found.tags]


# --- Spectrograms ---------------------------------------------------------------------------------


def decoded(data):
    """The shades of an indexed PNG, [H, W]."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(body)
        chunks[body[:4]] = body[4:]
        at += 12 + size
    width, height, depth, kind = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, kind, len(chunks[b"PLTE"])) == (8, 3, 768)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    return rows[:, 1:]


def test_a_tone_is_a_line_and_silence_is_dark():
    t = np.arange(32000) / 32000
    low, high = (decoded(png(np.sin(2 * np.pi * f * t)[None], 32000)) for f in (200, 5000))
    assert low.shape == (HEIGHT, WIDTH)
    lines = [shades.mean(axis=1).argmax() for shades in (low, high)]
    assert lines[0] > lines[1]  # the lowest is at the bottom
    assert decoded(png(np.zeros((2, 10)), 16000)).max() == 0
