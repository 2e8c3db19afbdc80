"""Nothing of a folder of music is left out without a word."""

import logging

import pytest
import soundfile

from musicgen_jax.errors import UserError
from musicgen_jax.training.data import metadata, sources
from musicgen_jax.training.data.metadata import MusicInfo
from tests.helpers.music_folders import tone


@pytest.mark.parametrize("suffix", sources.UNREADABLE)
def test_audio_that_cannot_be_read_is_named_and_counted(suffix, tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", tone(0.1), 4000)
    (tmp_path / f"b{suffix.upper()}").write_bytes(b"music")
    (tmp_path / "notes.pdf").write_bytes(b"no music")
    skipped = sources.Skipped()
    with caplog.at_level(logging.WARNING):
        assert [meta.path for meta in sources.find(tmp_path, skipped)] == ["a.wav"]
    assert list(skipped.names) == [f"b{suffix.upper()}"]
    assert f"convert {suffix.upper()} files to .wav or .flac" in caplog.text
    (tmp_path / "a.wav").unlink()
    with pytest.raises(UserError, match=r"none of the 1 audio files .* convert"):
        sources.find(tmp_path, sources.Skipped())


@pytest.mark.parametrize(
    ("files", "description"),
    [
        ({".txt": " a calm\nwaltz \n"}, "a calm waltz"),
        ({".json": '{"caption": "a waltz"}'}, "a waltz"),
        ({".json": '{"caption": "a waltz", "description": "a tango"}'}, "a tango"),
        ({".json": '{"genre": "folk"}', ".txt": "a waltz"}, "a waltz"),
        ({".json": '{"description": "a tango"}', ".txt": "a waltz"}, "a tango"),
        ({".txt": ""}, None),
        ({}, None),
    ],
)
def test_captions_are_read_wherever_people_write_them(files, description, tmp_path):
    for suffix, text in files.items():
        (tmp_path / f"a{suffix}").write_text(text)
    assert metadata.read(tmp_path / "a.wav").description == description


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * 5000, "longer than 4096 characters"),
        (b" " * (metadata.MAX_BYTES + 1), "larger than"),
    ],
)
def test_a_caption_from_outside_is_bounded(data, message, tmp_path):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=f"cannot use .*a.txt: .*{message}"):
        metadata.read(tmp_path / "a.wav")


def test_a_clip_is_bare_if_no_prompt_can_be_made_of_it():
    assert MusicInfo(title="a song", artist="somebody").is_bare
    assert not MusicInfo(description="a song").is_bare
    assert not MusicInfo(bpm=90.0).is_bare
