"""Training data: audiocraft's prompts and segments (goldens), order, shards, and what breaks."""

import argparse
import dataclasses
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from musicgen_jax import Codec, UserError, audio, testing
from musicgen_jax.commands import train_encode
from musicgen_jax.config import EncodecConfig
from musicgen_jax.training.data import encode as encoding
from musicgen_jax.training.data import metadata, prompts, sampling, sources
from musicgen_jax.training.data.clips import AudioClips
from musicgen_jax.training.data.encode import Windows, encode, encode_audio
from musicgen_jax.training.data.metadata import MusicInfo
from musicgen_jax.training.data.prompts import PromptConfig
from musicgen_jax.training.data.sampling import SamplingConfig
from musicgen_jax.training.data.shards import CodeShards
from musicgen_jax.training.data.sources import Skipped
from tests.helpers import shallow
from tests.helpers.imports import loaded_by
from tests.helpers.music_folders import DESCRIPTION_ALONE, TAIL, make_folder, make_shards, tone
from tests.helpers.paths import ROOT

EXPECTED = json.loads((ROOT / "tests/goldens/data/expected.json").read_text(encoding="utf-8"))
UNIFORM = SamplingConfig(sample_on_duration=False, sample_on_weight=False)


class Loaded:
    """A generator whose numbers are known."""

    def __init__(self, *falls: float):
        self.falls = iter(falls)

    def random(self) -> float:
        return next(self.falls)


def attempt(function, *arguments) -> tuple:
    """What a function returns and "", or None and what it says against its arguments."""
    try:
        return function(*arguments), ""
    except ValueError as error:  # UserError is one
        return None, str(error)


# --- audiocraft's prompts and segments -----------------------------------------------------------


def test_metadata_are_read_as_audiocraft_reads_them():
    for case in EXPECTED["parsed"]:
        assert MusicInfo.from_dict(case["raw"]).to_dict() == case["values"], case["raw"]


def test_texts_are_merged_as_audiocraft_merges_them():
    for case in EXPECTED["merged"]:
        info = MusicInfo.from_dict(case["raw"])
        text = prompts.merge_text(info, case["fields"], case["keep_description"])
        assert (text or None) == (case["text"] or None), case


def test_words_are_dropped_as_audiocraft_drops_them():
    for case in EXPECTED["words"]:
        keep = np.array(case["falls"]) >= case["word_dropout"]
        assert prompts.keep_words(case["text"], keep) == case["kept"]


def test_files_have_the_probabilities_of_audiocraft():
    durations, weights = zip(*EXPECTED["files"], strict=True)
    for case in EXPECTED["probabilities"]:
        config = SamplingConfig(case["sample_on_duration"], case["sample_on_weight"])
        ours = np.diff(sampling.cumulative(durations, weights, config), prepend=0.0)
        np.testing.assert_allclose(ours, case["probabilities"], rtol=1e-6)


def test_segments_are_cut_and_padded_as_audiocraft_does(tmp_path):
    files, rate = EXPECTED["files"], EXPECTED["rate"]
    for i, (duration, _) in enumerate(files):
        ramp = np.arange(round(duration * rate))
        wave = np.stack([ramp, -2 * ramp], axis=1).astype(np.int16)
        soundfile.write(tmp_path / f"{i}.flac", wave, rate)
    for case in EXPECTED["segments"]:
        config = dataclasses.replace(UNIFORM, min_segment_ratio=case["min_segment_ratio"])
        clips = AudioClips.open(tmp_path, rate, 1, config)
        rng = Loaded((case["file"] + 0.5) / len(files), case["place"])
        drawn = clips.sample(rng, round(EXPECTED["seconds"] * rate))  # type: ignore[arg-type]
        assert drawn.n_frames == case["n_frames"]
        assert drawn.seek_time == pytest.approx(case["seek_time"], abs=1e-12)
        assert drawn.audio.shape == (1, case["total"])
        assert drawn.audio[0, 0] == case["first"]
        assert drawn.audio.sum(dtype=np.float64) == pytest.approx(case["sum"], abs=1e-9)
        assert drawn.mask.sum() == drawn.n_frames
        assert not drawn.audio[:, ~drawn.mask].any()


# --- The dice ----------------------------------------------------------------------------------


def test_prompts_fall_as_often_as_they_should():
    info = MusicInfo.from_dict({"description": "words", "genre": "rock", "bpm": 90, "key": "c"})
    config = PromptConfig(merge_text_p=0.5, drop_desc_p=0.25, drop_other_p=0.2, word_dropout=0.0)
    drawn = [prompts.draw(info, np.random.default_rng(seed), config) for seed in range(4000)]
    # Merged or not is told by the other fields: a piece keeps none of three with 0.8 ** 3.
    some = [text for text in drawn if ":" in text]
    assert len(some) / len(drawn) == pytest.approx(0.5 * (1 - 0.8**3), abs=0.03)
    assert np.mean(["words" in text for text in some]) == pytest.approx(0.75, abs=0.04)
    assert np.mean(["genre" in text for text in drawn]) == pytest.approx(0.5 * 0.2, abs=0.02)
    both = [text for text in drawn if "genre" in text and "bpm" in text]
    first = np.mean([text.index("genre") < text.index("bpm") for text in both])
    assert first == pytest.approx(0.5, abs=0.15)
    assert np.mean([text == "" for text in drawn]) == pytest.approx(0.5 * 0.25 * 0.8**3, abs=0.02)


def test_words_fall_as_often_as_they_should():
    info = MusicInfo(description=" ".join("abcdefghij"))
    config = PromptConfig(0.0, 0.0, 0.0, word_dropout=0.3)
    drawn = [prompts.draw(info, np.random.default_rng(seed), config) for seed in range(500)]
    assert np.mean([len(text.split()) for text in drawn]) == pytest.approx(7, abs=0.2)
    assert prompts.draw(MusicInfo(), np.random.default_rng(0), PromptConfig()) == ""
    assert prompts.draw(info, np.random.default_rng(0), DESCRIPTION_ALONE) == info.description


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "half", True])
def test_probabilities_are_checked(value):
    with pytest.raises(UserError, match="word_dropout must be a probability"):
        PromptConfig(word_dropout=value)


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=6).filter(any),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.1, 20),
    st.floats(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_a_drawn_place_lies_in_its_file(weights, first, second, segment, ratio):
    config = SamplingConfig(False, True, ratio)
    lengths = np.arange(1.0, len(weights) + 1)
    probabilities = sampling.cumulative(lengths.tolist(), weights, config)
    index, place = sampling.draw(Loaded(first, second), probabilities, lengths, segment, config)  # type: ignore[arg-type]
    assert weights[index] > 0
    assert 0 <= place < lengths[index]
    assert place <= max(0, lengths[index] - segment * ratio)


def test_all_weights_zero_is_said():
    with pytest.raises(UserError, match="weight 0"):
        sampling.cumulative([1.0, 2.0], [0.0, 0.0], SamplingConfig())


def item_rng(item: int) -> np.random.Generator:
    """A generator of its own for each item."""
    return np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0, item)))


# --- Files -------------------------------------------------------------------------------------


def write_broken(folder: Path) -> list[str]:
    """Files whose headers are broken."""
    (folder / "text.wav").write_text("no audio")
    (folder / "empty.mp3").write_bytes(b"")
    soundfile.write(folder / "silent.wav", np.zeros((0, 1)), 4000)
    os.mkfifo(folder / "pipe.flac")
    return ["empty.mp3", "pipe.flac", "silent.wav", "text.wav"]


def write_broken_inside(path: Path, seconds: float = 8.0) -> None:
    """A flac file whose header is whole and whose end is noise."""
    soundfile.write(path, tone(seconds, seed=9), 4000)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half:] = np.random.default_rng(0).bytes(len(data) - half)
    path.write_bytes(data)


def test_a_folder_is_searched_in_depth_and_in_the_order_of_names(tmp_path):
    folder = make_folder(tmp_path / "data", [0.5])
    (folder / "b" / "c").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("b/c/z.FLAC", "b/a.ogg", ".hidden/x.wav", "b/._a.wav", "a.mp3"):
        soundfile.write(folder / name, tone(0.5, 8000), 8000, format=name.rpartition(".")[2])
    (folder / "b" / "round").symlink_to(folder)
    found = sources.find(folder, Skipped())
    assert [meta.path for meta in found] == ["0.wav", "a.mp3", "b/a.ogg", "b/c/z.FLAC"]
    assert all(meta.duration == pytest.approx(0.5, abs=0.1) for meta in found)


def test_broken_files_are_named_once_and_skipped(tmp_path, caplog):
    folder = make_folder(tmp_path / "data", [2.0, 1.0])
    broken = write_broken(folder)
    write_broken_inside(folder / "inside.flac")
    clips = AudioClips.open(folder, 4000, 1, UNIFORM)
    assert list(clips.skipped.names) == broken
    drawn = [clips.sample(item_rng(i), 4000) for i in range(40)]
    assert "inside.flac" in clips.skipped
    assert len(clips.skipped) == len(broken) + 1
    named = Counter(
        name for name in clips.skipped.names for line in caplog.messages if name in line
    )
    assert set(named.values()) == {1}
    assert all("\n" not in line for line in caplog.messages)
    # What was found broken before changes nothing.
    for i in (39, 7):
        fresh = AudioClips.open(folder, 4000, 1, UNIFORM).sample(item_rng(i), 4000)
        np.testing.assert_array_equal(fresh.audio, drawn[i].audio)


def test_nothing_but_broken_files_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="no audio in"):
        AudioClips.open(tmp_path, 4000, 1)
    write_broken(tmp_path / "a")
    with pytest.raises(UserError, match="none of the 4 audio files"):
        AudioClips.open(tmp_path, 4000, 1)
    lines = [{"path": f"a/{n}.wav", "duration": 3.0, "sample_rate": 8} for n in ("text", "gone")]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"in 100 draws: 2 of 2 files .*a/(text|gone)\.wav"):
        AudioClips.open(manifest, 4000, 1).segment(item_rng(0), 100)
    with pytest.raises(UserError, match="no folder of audio and no manifest at"):
        AudioClips.open(tmp_path / "gone", 4000, 1)


def test_a_manifest_of_audiocraft(tmp_path):
    folder = make_folder(tmp_path / "data", [2.0, 1.0, 3.0])
    full = {"sample_rate": 4000, "amplitude": None, "info_path": None}
    lines = [
        {"path": "data/1.wav", "duration": 1.0, "weight": 0.0, **full},
        {"path": str(folder / "2.wav"), "duration": 3.0, "weight": 2, **full},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "data.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    for source in (tmp_path, tmp_path / "data.jsonl.gz"):
        clips = AudioClips.open(source, 8000, 2)
        assert [meta.weight for meta in clips.metas] == [0.0, 2.0]
        drawn = [clips.sample(item_rng(i), 800) for i in range(5)]
        assert {d.path for d in drawn} == {lines[1]["path"]}
        assert drawn[0].audio.shape == (2, 800)
        whole, _ = audio.read(folder / "2.wav")
        first = round(drawn[0].seek_time * 4000)
        ours = audio.resample(whole[:, first:][:, :400], 4000, 8000)[0]
        np.testing.assert_allclose(drawn[0].audio[0, 100:700], ours[100:700], atol=0.02)
    other = AudioClips.open(folder, 8000, 2)
    assert clips.fingerprint != other.fingerprint
    assert AudioClips.open(folder, 8000, 2).fingerprint == other.fingerprint


GOOD = {"path": "a.wav", "duration": 1.0, "sample_rate": 8}
BAD_LINES = [
    (b"[1]", "not a JSON object"),
    (b'{"path": "a.wav"', "not JSON"),
    (b"\xff\xfe\xfd", "not "),
    (b"[" * 60000, "nested too deeply"),
    (b" " * 70000, "longer than"),
    *(
        (json.dumps(GOOD | change).encode(), error)
        for change, error in [
            ({"path": 3}, "path must be a text"),
            ({"path": "a\0b"}, "path must be a text"),
            ({"path": "\ud800"}, "not valid Unicode"),
            ({"duration": 0}, "above 0"),
            ({"duration": float("inf")}, "duration must be a number"),
            ({"duration": 10**400}, "duration must be a number"),
            ({"sample_rate": True}, "sample_rate must be a number"),
            ({"weight": -1}, "weight must be a number"),
        ]
    ),
]


@pytest.mark.parametrize(("line", "error"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_broken_manifest_is_told_by_its_line(tmp_path, line, error):
    path = tmp_path / "m.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=rf"m\.jsonl, line 2: .*{error}") as caught:
        sources.find(path, Skipped())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n", b"no gzip", gzip.compress(b"x" * 999, mtime=0)[:-20]],
    ids=["empty", "empty lines", "no gzip", "cut off"],  # gzip's header holds the time
)
def test_a_broken_compressed_manifest(tmp_path, data):
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"m\.jsonl\.gz"):
        sources.find(path, Skipped())
    with pytest.raises(UserError, match="neither a folder of audio nor a manifest"):
        sources.find(shutil.copy(path, tmp_path / "m.txt"), Skipped())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
FIELDS = [*MusicInfo().__dataclass_fields__]


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES) | VALUES)
@example({"moods": ["x" * 5000]})
@example({"moods": ["x"] * 300})
@example({"description": "\ud800"})
@example({"bpm": 10**400, "genre": "x"})
@settings(max_examples=60, deadline=None)
def test_hostile_metadata_are_texts_or_an_error(values):
    info, error = attempt(MusicInfo.from_dict, values)
    if info is None:
        assert "\n" not in error
        return
    assert MusicInfo.from_dict(info.to_dict()) is not None
    text = prompts.draw(info, np.random.default_rng(0), PromptConfig(1.0, 0.0, 1.0, 0.1))
    assert isinstance(text, str)
    text.encode()
    assert len(text) < 1 << 21


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
@settings(max_examples=80, deadline=None)
def test_a_sidecar_may_hold_anything(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.wav"
    path.with_suffix(".json").write_bytes(data)
    info, error = attempt(metadata.read, path)
    assert isinstance(info, MusicInfo) or error.startswith("cannot use ")
    assert "\n" not in error


def test_a_sidecar_is_bounded_and_must_be_a_file(tmp_path):
    path = tmp_path / "a.wav"
    assert metadata.read(path) == MusicInfo()
    path.with_suffix(".json").write_bytes(b" " * (metadata.MAX_BYTES + 1))
    with pytest.raises(ValueError, match="larger than"):
        metadata.read(path)
    os.mkfifo(tmp_path / "b.json")
    with pytest.raises(ValueError, match="not a file"):
        metadata.read(tmp_path / "b.wav")


def test_a_rate_that_would_blow_a_file_up_is_refused(tmp_path):
    soundfile.write(tmp_path / "slow.wav", tone(3000, 1, channels=8), 1)
    (meta,) = sources.find(tmp_path, Skipped())
    with pytest.raises(UserError, match="too long at 32000 Hz"):
        sources.read_audio(meta, 32000, 8)


# --- Shards ------------------------------------------------------------------------------------


def test_segments_of_shards_are_the_codes_that_went_in(tmp_path):
    shards = make_shards(tmp_path / "codes")
    assert len([*tmp_path.glob("codes/codes-*.npy")]) == 2
    assert (shards.codebooks, shards.frame_rate, shards.num_frames_total) == (2, 25.0, 57)
    assert [*shards.codes(2)[0]] == [*range(200, 212)]
    seen = set()
    for seed in range(60):
        drawn = shards.sample(np.random.default_rng(seed), 20)
        i = int(drawn.path[0])
        frames = (5, 40, 12)[i]
        music = 100 * i + np.arange(drawn.start, min(drawn.start + 20, frames))
        expected = np.r_[music, [900] * TAIL, [901] * 20][:20]
        np.testing.assert_array_equal(drawn.codes[0], expected)
        # The second row is one more everywhere: the two were not mixed up.
        np.testing.assert_array_equal(drawn.codes[1], expected + 1)
        assert drawn.n_frames == len(music) == drawn.mask.sum()
        assert drawn.start <= max(0, frames - 16)  # min_segment_ratio 0.8
        assert drawn.prompt == f"piece {i}"
        codes, prompt = shards.segment(np.random.default_rng(seed), 20)
        assert (codes == drawn.codes).all()
        assert prompt == drawn.prompt
        assert codes.dtype == np.int32
        seen.add((i, drawn.start))
    assert {0, 1, 2} == {i for i, _ in seen}
    assert len(seen) > 15


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 40), st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_segments_have_one_shape(tmp_path_factory, lengths, frames, per_shard):
    shards = make_shards(tmp_path_factory.mktemp("s") / "codes", lengths, per_shard)
    for i, length in enumerate(lengths):
        assert shards.codes(i).shape == (2, length)
    for item in range(3):
        codes, _ = shards.segment(item_rng(item), frames)
        assert codes.shape == (2, frames)
        assert codes.max() < 1000


def test_what_changed_in_a_folder_of_codes_is_said(tmp_path):
    good = tmp_path / "good"
    fingerprint = make_shards(good).fingerprint
    assert make_shards(tmp_path / "same").fingerprint == fingerprint
    assert make_shards(tmp_path / "other", (5, 40, 13)).fingerprint != fingerprint

    def draw_many(folder: Path) -> None:
        shards = CodeShards.open(folder)
        for seed in range(50):
            shards.segment(np.random.default_rng(seed), 60)

    def broken(name: str, change) -> UserError:
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        path = folder / name
        data = change(path.read_bytes())
        path.unlink() if data is None else path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            draw_many(folder)
        assert "\n" not in str(caught.value)
        assert name.partition(".")[0] in str(caught.value) or "not finished" in str(caught.value)
        return caught.value

    assert "changed since" in str(broken("codes-00000.npy", lambda data: data + b"0"))
    assert "changed since" in str(broken("codes-00000.json", lambda data: data + b" "))
    assert "codes beyond" in str(broken("codes-00000.npy", lambda data: data[:-99] + b"\x7f" * 99))
    assert "broken" in str(broken("codes-00001.npy", lambda data: b"\x80" * len(data)))
    assert "cannot read" in str(broken("codes-00001.npy", lambda data: None))
    assert "not finished" in str(broken("index.json", lambda data: None))
    assert "broken" in str(broken("index.json", lambda data: data[:50]))
    assert "version 9" in str(
        broken("index.json", lambda data: data.replace(b'"version": 1', b'"version": 9'))
    )
    with pytest.raises(UserError, match="make them with"):
        CodeShards.open(tmp_path)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_hostile_index_is_an_error_of_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "hostile"
    if not folder.exists():
        make_shards(folder)
        shutil.copy(folder / "index.json", folder / "kept.json")
    index = json.loads((folder / "kept.json").read_text())
    place = index if data.draw(st.booleans()) else index["shards"][0]
    place[data.draw(st.sampled_from([*place]))] = data.draw(VALUES)
    (folder / "index.json").write_text(json.dumps(index))
    _, error = attempt(lambda: CodeShards.open(folder).segment(np.random.default_rng(0), 5))
    assert "\n" not in error


# --- Encoding ----------------------------------------------------------------------------------

HOP = 4
COUNTING = EncodecConfig(sample_rate=100, ratios=(2, 2), n_q=2, bins=1000, lstm=0)


def counting(batch: np.ndarray) -> np.ndarray:
    """Codes [B, 2, T] that see five frames on each side, as convolutions would."""
    frames = np.abs(batch[:, 0]).reshape(len(batch), -1, HOP).sum(-1) * 100
    padded = np.pad(frames, ((0, 0), (5, 5)), mode="edge")
    seen = sum(padded[:, i : i + frames.shape[1]] * (i + 1) for i in range(11))
    codes = seen.round().astype(np.int64) % 1000
    return np.stack([codes, (codes + 1) % 1000], axis=1).astype(np.int16)


@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(5, 9),
    st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_pieces_of_a_file_give_the_codes_of_the_whole(lengths, stride, context, batch_size):
    windows = Windows(HOP, stride, context)
    rng = np.random.default_rng(0)
    clips = [(i, rng.random((1, width), np.float32)) for i, width in enumerate(lengths)]
    made = [*encode_audio(counting, clips, windows, batch_size)]
    assert [label for label, _ in made] == [label for label, _ in clips]
    for (_, wav), (_, codes) in zip(clips, made, strict=True):
        frames = -(-wav.shape[1] // HOP)
        assert codes.shape == (2, frames + context)
        whole = np.pad(wav, ((0, 0), (0, (frames + context + 9) * HOP - wav.shape[1])))
        np.testing.assert_array_equal(codes, counting(whole[None])[0, :, : codes.shape[1]])


@pytest.fixture
def fake_codec(monkeypatch):
    """The counting codec in place of a network, at once."""
    codec = types.SimpleNamespace(
        config=COUNTING, name="counting", fingerprint="f", sample_rate=100, channels=1, encodec=None
    )
    monkeypatch.setattr(encoding, "load_codec", lambda model: (codec, 1, None, None))
    monkeypatch.setattr(encoding, "_encode", lambda encodec, batch: counting(batch))


def encode_small(data: Path, out: Path, **kwargs) -> CodeShards:
    return encode(data, out, "counting", seconds=1, shard_mb=4 * 60 / 2**20, **kwargs)


def test_a_folder_becomes_shards(tmp_path, fake_codec, caplog):
    data = make_folder(tmp_path / "data", [1.0, 3.3, 0.05, 2.0], 100)
    write_broken_inside(data / "inside.flac", 60)
    (data / "2.json").write_text('{"genre": {}}')
    lines: list[str] = []
    made = encode_small(data, tmp_path / "out", log=lines.append)
    assert [clip.path for clip in made.clips] == ["0.wav", "1.wav", "3.wav"]
    assert made.skipped == 2
    assert len(caplog.messages) == 2
    assert "genre must be" in "".join(caplog.messages)
    assert [clip.frames for clip in made.clips] == [25, 83, 50]
    assert made.clips[1].info == MusicInfo(description="piece 1", genre="rock")
    assert len(lines) == len([*(tmp_path / "out").glob("codes-*.npy")]) == 2
    wav, _ = audio.read(data / "1.wav")
    whole = counting(np.pad(wav, ((0, 0), (0, 402)))[None])[0]
    np.testing.assert_array_equal(made.codes(1), whole[:, :83])
    assert encode_small(data, tmp_path / "out").fingerprint == made.fingerprint


def test_a_killed_encoding_goes_on_with_the_same_result(tmp_path, fake_codec, monkeypatch):
    data = make_folder(tmp_path / "data", [1.0, 3.0, 0.5, 2.0, 2.5, 1.5], 100)
    expected = encode_small(data, tmp_path / "whole").fingerprint
    replace, encoded = os.replace, encoding._encode
    seen: list[int] = []
    for stop in range(20):
        out = tmp_path / f"killed {stop}"
        left = iter(range(stop))

        def dying(source, target, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        try:
            encode_small(data, out)
            break
        except KeyboardInterrupt:
            monkeypatch.setattr(os, "replace", replace)
        if out.exists() and stop:
            leftover = out / f".{'0' * 16}.part"
            leftover.write_bytes(b"left by a kill that ran nothing after it")
            os.utime(leftover, (0, 0))  # a young one could belong to a process that still writes
            with pytest.raises(UserError, match="not finished"):
                CodeShards.open(out)
        runs = []
        monkeypatch.setattr(
            encoding, "_encode", lambda *a, runs=runs: runs.append(1) or encoded(*a)
        )
        assert encode_small(data, out).fingerprint == expected
        assert not [*out.glob(".*")]
        seen.append(len(runs))
    assert len(seen) == stop > 5
    assert seen == sorted(seen, reverse=True)  # finished shards are not encoded again
    assert seen[-1] == 1  # the silence alone


def test_a_name_that_is_not_text_is_skipped_and_shown_with_escapes(tmp_path, fake_codec, caplog):
    data = make_folder(tmp_path / "data", [1.0], 100)
    shutil.copy(data / "0.wav", os.fsencode(data / "caf") + b"\xe9.wav")
    made = encode_small(data, tmp_path / "out")
    assert [clip.path for clip in made.clips] == ["0.wav"]
    index = json.loads((tmp_path / "out" / "index.json").read_text(encoding="utf-8"))
    assert index["skipped_first"] == ["caf\\udce9.wav"]
    assert any("caf\\udce9.wav" in line for line in caplog.messages)
    "".join(caplog.messages).encode()  # every log can be written
    assert CodeShards.open(tmp_path / "out").skipped == 1


def test_files_that_changed_since_are_named(tmp_path, fake_codec):
    data = make_folder(tmp_path / "data", [1.0, 2.0], 100)
    out = tmp_path / "out"
    encode_small(data, out)
    shutil.copy(data / "0.wav", data / "new.wav")
    made = encode_small(data, out)
    assert [clip.path for clip in made.clips] == ["0.wav", "1.wav", "new.wav"]

    text = (data / "1.json").read_text()
    (data / "1.json").write_text('{"genre": "jazz"}')
    with pytest.raises(UserError, match=r"^1 audio files or their metadata changed .*1\.wav"):
        encode_small(data, out)
    (data / "1.json").write_text(text)
    encode_small(data, out)
    soundfile.write(data / "0.wav", tone(1.0, 100, seed=7), 100)
    with pytest.raises(UserError, match=r"the first is 0\.wav: encode into a new folder"):
        encode_small(data, out)
    (data / "1.wav").unlink()
    with pytest.raises(UserError, match=r"^2 audio files"):
        encode_small(data, out)


def test_a_folder_of_something_else_is_left_alone(tmp_path, fake_codec):
    data = make_folder(tmp_path / "data", [1.0], 100)
    with pytest.raises(UserError, match="holds something else"):
        encode_small(data, data)
    out = tmp_path / "out"
    encode_small(data, out)
    with pytest.raises(UserError, match=r"was encoded with seconds 1\.0, not 2\.0"):
        encode(data, out, "counting", seconds=2)
    (out / "settings.json").write_text("{")
    with pytest.raises(UserError, match="cannot continue"):
        encode_small(data, out)
    (data / "0.wav").write_text("broken")
    with pytest.raises(UserError, match="none of the 1 audio files"):
        encode_small(data, tmp_path / "new")
    (data / "0.wav").unlink()
    write_broken_inside(data / "0.flac", 60)
    with pytest.raises(UserError, match="every one of the 1 audio files is broken"):
        encode_small(data, tmp_path / "new")


@pytest.mark.parametrize(
    "change", [{"seconds": 0}, {"seconds": float("nan")}, {"shard_mb": -1}, {"batch_size": 0}]
)
def test_bad_numbers_are_named(tmp_path, change):
    with pytest.raises(UserError, match=next(iter(change))):
        encode(tmp_path, tmp_path / "out", "nano", **change)


def command(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train_encode.add_arguments(parser)
    return parser.parse_args([str(a) for a in arguments])


def test_the_command_encodes_as_the_codec_does(tmp_path, capsys):
    """The bundled codec has no LSTM: pieces give exactly what the whole file gives."""
    data = tmp_path / "data"
    data.mkdir()
    wav = tone(3.1, 16000, channels=2).astype(np.float32)
    soundfile.write(data / "a.wav", wav, 16000, subtype="FLOAT")
    args = command(data, tmp_path / "out", "--seconds", 1)
    train_encode.run(args)
    assert "1 clips, 0.00 h, 4 codebooks, skipped 0" in capsys.readouterr().out
    made = CodeShards.open(tmp_path / "out")
    codec = Codec.from_pretrained("nano")
    assert made.codec == codec.fingerprint
    whole = codec.encode(np.pad(wav.T, ((0, 0), (0, 16000))), 16000).codes[0]
    ours = made.codes(0)
    assert ours.shape == (4, -(-wav.shape[0] // 640))
    assert (ours == whole[:, : ours.shape[1]]).mean() > 0.999  # near ties fall either way


def test_stereo_models_and_lstms(tmp_path):
    testing.save_random_model(tmp_path / "model", shallow.STEREO)
    data = tmp_path / "data"
    data.mkdir()
    wav = tone(2.5, channels=2).astype(np.float32)
    soundfile.write(data / "a.flac", wav, 4000)
    wav = audio.read(data / "a.flac")[0]
    made = encode(data, tmp_path / "out", tmp_path / "model", seconds=3, batch_size=2)
    channels = Codec.from_pretrained(tmp_path / "model").encode(wav[:, None], 4000).codes
    whole = channels.swapaxes(0, 1).reshape(8, -1)  # first codebook left, first right, second left
    assert made.codebooks == 8
    assert made.codes(0).shape == whole.shape == (8, 125)
    # The end differs, where one is followed by silence and the other by nothing.
    assert (made.codes(0)[:, :115] == whole[:, :115]).mean() > 0.999
    codes, _ = made.segment(item_rng(0), 400)
    assert (codes[:, -1] == codes[:, -100]).all()  # silence


@pytest.mark.slow
def test_a_killed_process_loses_a_shard_at_most(tmp_path):
    data = make_folder(tmp_path / "data", [4.0] * 60)
    testing.save_random_model(tmp_path / "model", shallow.TEXT)
    arguments = ["--model", tmp_path / "model", "--seconds", 1, "--shard-mb", 0.003]
    code = (
        "import argparse, sys; from musicgen_jax.commands.train_encode import *\n"
        "p = argparse.ArgumentParser(); add_arguments(p); run(p.parse_args(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", code, data, tmp_path / "killed", *arguments]
    process = subprocess.Popen([str(word) for word in line], cwd=ROOT, stdout=subprocess.DEVNULL)
    first = tmp_path / "killed" / "codes-00000.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    written = first.stat().st_mtime_ns
    train_encode.run(command(data, tmp_path / "killed", *arguments))
    train_encode.run(command(data, tmp_path / "whole", *arguments))
    assert first.stat().st_mtime_ns == written
    killed, whole = (CodeShards.open(tmp_path / name) for name in ("killed", "whole"))
    assert killed.fingerprint == whole.fingerprint


def test_the_command_starts_without_jax():
    modules = "commands.train_encode, training.data.clips, training.data.shards"
    code = "".join(f"import musicgen_jax.{name};" for name in modules.split(", "))
    assert not loaded_by(code) & {"flax", "jax", "optax", "soundfile", "torch"}
