"""The settings inside a clip: they survive every format, and a hostile file says nothing."""

import json
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax import audio
from musicgen_jax.audio import clip_settings

FORMATS = (".wav", ".flac", ".mp3", ".ogg")
MADE = {"model": "nano", "prompt": "a waltz für Élise 🎻", "seed": 7, "program": "batch=1"}


def noise(samples=1600):
    return (0.1 * np.random.default_rng(0).standard_normal((1, samples))).astype(np.float32)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_carries_them(tmp_path, suffix):
    path = audio.write(tmp_path / f"x{suffix}", noise(), 16000, comment=clip_settings.dump(MADE))
    assert clip_settings.read(path) == MADE
    wav, rate = audio.read(path)
    assert abs(wav.shape[1] / rate - 0.1) < 0.01
    plain = audio.write(tmp_path / f"plain{suffix}", noise(), 16000)
    assert clip_settings.read(plain) is None
    np.testing.assert_array_equal(audio.read(plain)[0], wav)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_grew_is_the_file_that_is_written_at_once(tmp_path, suffix):
    wave, comment = noise(5000), clip_settings.dump(MADE)
    whole = tmp_path / f"whole{suffix}"
    audio.write(whole, wave, 16000, "loudness", loudness_compressor=True, comment=comment)
    grown = audio.GrowingFile(
        tmp_path / f"grown{suffix}", 1, 16000, "loudness", samples=5000, aside=tmp_path / "aside"
    )
    for start in range(0, 5000, 700):
        grown.write(wave[:, start : start + 700])
    path = grown.finish(comment)
    assert clip_settings.read(path) == MADE
    a, b = audio.read(whole)[0], audio.read(path)[0]
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, atol=2 / 2**15)


def test_other_programs_read_the_comment(tmp_path):
    path = audio.write(tmp_path / "x.wav", noise(), 16000, comment=clip_settings.dump(MADE))
    with soundfile.SoundFile(path) as file:
        assert json.loads(file.comment) == MADE


@settings(max_examples=40, deadline=None)
@given(prompt=st.text(max_size=50), times=st.integers(1, 3000))
def test_a_comment_is_bounded_and_reads_back(prompt, times):
    text = clip_settings.dump({**MADE, "prompt": prompt * times})
    assert len(text.encode()) <= clip_settings.MAX_BYTES
    found = clip_settings.parse(text)
    assert found is not None
    assert (prompt * times).startswith(found["prompt"])
    assert found.get("prompt_characters", len(found["prompt"])) == len(prompt * times)


@pytest.mark.parametrize("length", [3000, 30_000])
def test_a_long_prompt_in_a_wav_file(tmp_path, length):
    """libsndfile reads 2 KB of a wav file's comment."""
    made = {**MADE, "prompt": "x" * length}
    path = audio.write(tmp_path / "x.wav", noise(), 16000, comment=clip_settings.dump(made))
    assert clip_settings.read(path) == made


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "recorded in a church",
        "[1, 2]",
        "null",
        "{}",
        json.dumps({"model": "nano", "prompt": "x"}),
        "[" * 20_000,
        json.dumps({**MADE, "prompt": "x" * 100_000}),
    ],
)
def test_what_is_not_ours(comment):
    assert clip_settings.parse(comment) is None


def riff(*chunks: tuple[bytes, int, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", size) + data for name, size, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


FMT = (b"fmt ", 16, struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16))
DATA = (b"data", 200, bytes(200))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"LIST", 2**32 - 1, b"INFO"),
        (b"LIST", 12, b"INFOICMT\xff\xff\xff\xff"),
        (b"LIST", 4, b"INFO"),
        (b"LIST", 0, b""),
        (b"LIST", 16, b"adtlICMT\x04\x00\x00\x00{}  "),
        (b"LIST", 16, b"INFOICMT\x04\x00\x00\x00\xff\xfe\xfd\xfc"),
    ],
)
def test_a_wav_file_with_a_bad_list(tmp_path, chunk):
    path = tmp_path / "x.wav"
    path.write_bytes(riff(FMT, DATA, chunk))
    assert clip_settings.read(path) is None
