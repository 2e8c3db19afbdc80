"""Melody models on one's own audio: melodies of whole clips, segments of them, runs of training."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from musicgen_jax import MusicGen, UserError, audio, testing
from musicgen_jax.commands import cli
from musicgen_jax.commands import train_lm as train_lm_command
from musicgen_jax.conditioning import melody as melodies
from musicgen_jax.conditioning.chroma import HOP, WINDOW, frame_count, melody_chroma
from musicgen_jax.config import OFFICIAL_MODELS, EncodecConfig
from musicgen_jax.nano.render import render
from musicgen_jax.training import lm, lm_loop
from musicgen_jax.training.batches import MELODY_DROPOUT, Dropout, melody_shape
from musicgen_jax.training.data import encode as encoding
from musicgen_jax.training.data.encode import encode
from musicgen_jax.training.data.listener import Listener
from musicgen_jax.training.data.metadata import MusicInfo
from musicgen_jax.training.data.shard_writer import ShardWriter
from musicgen_jax.training.data.shards import CodeClip, CodeShards
from musicgen_jax.training.data.sources import Skipped
from musicgen_jax.training.finetune import make_config
from musicgen_jax.training.lm_settings import PRESETS
from musicgen_jax.training.optimizer import OptimizerConfig
from tests.helpers import shallow
from tests.helpers.damaged_shards import complaint
from tests.helpers.lm_runs import records
from tests.helpers.music_folders import make_folder, make_shards
from tests.helpers.paths import ROOT

RATE, FRAME = 16000, 640  # of nano
OFFICIAL = OFFICIAL_MODELS["facebook/musicgen-melody"].lm


@pytest.fixture(scope="module", autouse=True)
def no_separator(tmp_path_factory):
    """A home for models without htdemucs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSICGEN_JAX_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Rendered music, and its codes by nano's codec, with melodies and without."""
    home = tmp_path_factory.mktemp("melody")
    render(home / "music", 3, 6.0)
    for name, melody in (("melody", True), ("text", False)):
        encode(home / "music", home / name, "nano", seconds=3.0, melody=melody)
    return home


# --- What is heard -------------------------------------------------------------------------------


def heard(wav, start, samples):
    """What the conditioner is given of a stretch of audio that is cut first."""
    wav = np.pad(wav, (0, 1 << 18))[start : start + samples]
    return melody_chroma(wav, sample_rate=RATE, num_frames=frame_count(samples))


def test_the_chroma_of_a_segment_is_that_of_its_audio(home):
    """At any start: all frames but those that hear over its borders; these hear the clip."""
    shards = CodeShards.open(home / "melody")
    frames = 70
    samples = frames * FRAME
    count = frame_count(samples)
    inner = slice(2, (samples - WINDOW // 2) // HOP + 1)
    pitches, offsets, padded, differing = set(), set(), 0, 0
    for seed in range(30):
        drawn = shards.sample(np.random.default_rng(seed), frames)
        ours = drawn.chroma
        assert ours is not None
        assert (ours.shape, ours.dtype) == ((count, 12), np.float32)
        wav = audio.read(home / "music" / drawn.path)[0][0]
        start = drawn.start * FRAME
        alone = heard(wav, start, samples)
        np.testing.assert_array_equal(ours[inner], alone[inner])
        around = heard(np.pad(wav, (2 * HOP, 0), mode="reflect"), start, samples + 4 * HOP)
        np.testing.assert_array_equal(ours, around[2 : 2 + count])
        differing += (ours != alone).any(axis=1).sum()
        pitches |= {*ours.argmax(axis=1)}
        offsets.add(start % HOP)
        padded += drawn.n_frames < frames
    assert len(pitches) > 5
    assert len(offsets) > 5
    assert padded > 2
    assert inner.stop - inner.start == count - 4
    assert differing > 3  # or what is said of borders would be idle


def test_the_beginning_of_a_clip_is_heard_mirrored():
    """Of noise, in which another pitch would be the loudest if silence were before it."""
    frames = 60
    hear = Listener(RATE, FRAME, OFFICIAL, False)
    for seed in range(12):
        wav = np.random.default_rng(seed).standard_normal(4 * WINDOW).astype(np.float32)
        rows = hear(wav[None], frames)
        assert (rows.shape, rows.dtype) == ((frames, 5), np.uint8)
        expected = heard(wav, 0, frames * FRAME).argmax(axis=1)
        np.testing.assert_array_equal(rows.reshape(-1)[:: HOP * 5 // FRAME][:8], expected[:8])


def test_far_behind_a_clip_is_silence(home):
    shards = CodeShards.open(home / "melody")
    chroma = shards.segment_with_chroma(np.random.default_rng(0), 400)[2]
    assert chroma is not None
    assert chroma.shape == (frame_count(400 * FRAME), 12)
    assert (chroma[-30:, 0] == 1).all()
    assert (chroma.sum(axis=1) == 1).all()


def test_a_segment_is_the_same_with_and_without_its_melody(home):
    melody, text = (CodeShards.open(home / name) for name in ("melody", "text"))
    for seed in range(10):
        *drawn, chroma = melody.segment_with_chroma(np.random.default_rng(seed), 50)
        *plain, nothing = text.segment_with_chroma(np.random.default_rng(seed), 50)
        codes, prompt = text.segment(np.random.default_rng(seed), 50)
        assert chroma is not None
        assert nothing is None
        for other in (drawn, plain):
            np.testing.assert_array_equal(other[0], codes)
            assert other[1] == prompt


def test_codes_for_text_models_are_what_they_were(home, tmp_path):
    """The digests are of before there were melodies."""
    assert make_shards(tmp_path / "codes").fingerprint == "47bf9acf5fa0a7e3"
    names = sorted(file.name for file in (home / "text").iterdir())
    assert names == ["codes-00000.json", "codes-00000.npy", "index.json", "settings.json"]
    for name in names:
        assert b"chroma" not in (home / "text" / name).read_bytes()
    codes = [(home / name / "codes-00000.npy").read_bytes() for name in ("text", "melody")]
    assert codes[0] == codes[1]


def test_a_stereo_model(tmp_path):
    """Both channels are heard, without a flag, since the model is one of melodies."""
    config = dataclasses.replace(
        shallow.STEREO,
        lm=dataclasses.replace(shallow.STEREO.lm, conditioning="prepend", chroma_bins=12),
        max_duration=10.0,
    )
    testing.save_random_model(tmp_path / "model", config)
    at = np.arange(48000) / 4000
    left, right = (
        np.sin(2 * np.pi * f * at) * (np.arange(48000) // 16384 == i)
        for i, f in ((0, 440.0), (1, 262.0))
    )
    (tmp_path / "music").mkdir()
    audio.write(tmp_path / "music/a.wav", 0.5 * np.stack([left, right]), 4000, strategy="clip")
    made = encode(tmp_path / "music", tmp_path / "codes", tmp_path / "model")
    assert (made.codebooks, made.chroma_bins) == (8, 12)
    chroma = made.sample(np.random.default_rng(0), 500).chroma
    assert chroma is not None
    assert chroma.shape == melody_shape(config)
    assert [*chroma.argmax(axis=1)[:3]] == [9, 9, 9]
    assert [*chroma.argmax(axis=1)[6:8]] == [0, 0]


@pytest.mark.parametrize(("rate", "hop"), [(32000, 640), (24000, 320), (16000, 640), (44100, 512)])
def test_every_frame_of_codes_is_on_the_grid(rate, hop):
    settings = Listener(rate, hop, OFFICIAL, None).settings
    apart = hop // settings["chroma_places"]
    assert HOP % apart == 0
    assert settings["chroma_places"] <= 5


def test_a_codec_whose_frames_do_not_fit_is_refused():
    with pytest.raises(UserError, match="of 441: 441 to a frame"):
        Listener(44100, 441, OFFICIAL, None)


def test_a_window_has_the_frames_of_the_official_models(tmp_path):
    config = OFFICIAL_MODELS["facebook/musicgen-melody"]
    clip = CodeClip("a", 0, 2000, 2000, None, (1, 2), MusicInfo())
    writer = ShardWriter(tmp_path / "codes", fixed(32000, 640, 4), 1, lambda line: None)
    pitches = (np.arange(10000) % 12).astype(np.uint8).reshape(2000, 5)
    writer.add(clip, np.zeros((4, 2000), np.int16), pitches)
    writer.finish([0] * 4, Skipped())
    drawn = CodeShards.open(tmp_path / "codes").sample(np.random.default_rng(0), 1500)
    assert drawn.chroma is not None
    assert drawn.chroma.shape == melody_shape(config) == (235, 12)
    # Every 32nd place, from the first of the segment's own frame on.
    expected = (drawn.start * 5 + 32 * np.arange(235)) % 12
    within = drawn.start * 5 + 32 * np.arange(235) < 10000
    np.testing.assert_array_equal(drawn.chroma.argmax(axis=1), np.where(within, expected, 0))


def fixed(rate, hop, books, places=5):
    """Settings of shards whose codes are made up."""
    return {
        "format": "musicgen-jax code shards", "version": 1, "codec": "none", "fingerprint": "f",
        "sample_rate": rate, "hop_length": hop, "audio_channels": 1, "codebooks": books, "card": 8,
        "chroma_bins": 12, "chroma_hop": HOP, "chroma_window": WINDOW, "chroma_places": places,
        "chroma_separated": False,
    }  # fmt: skip


# --- The separator -------------------------------------------------------------------------------


def test_the_separator_is_heard_if_there_is_one(tmp_path, monkeypatch):
    """And the same folder is not filled with melodies of both kinds."""

    class Muted:
        def melody(self, mono, rate):
            return np.zeros((2, mono.shape[1]), np.float32), rate

    lines: list[str] = []
    settings: dict[str, Any] = {"seconds": 3.0, "melody": True}
    render(tmp_path / "music", 1, 2.0)
    mixed = encode(tmp_path / "music", tmp_path / "mixed", "nano", **settings, log=lines.append)
    assert lines[0] == "melodies: of all instruments, since no separator htdemucs is installed"
    monkeypatch.setattr(melodies, "_load_separator", lambda home: Muted())
    monkeypatch.setattr("musicgen_jax.training.data.listener.separator_at_hand", lambda: True)
    made = encode(tmp_path / "music", tmp_path / "apart", "nano", **settings, log=lines.append)
    assert "melodies: without drums and bass, by htdemucs" in lines
    chroma = made.sample(np.random.default_rng(0), 70).chroma
    assert chroma is not None
    assert (chroma[:, 0] == 1).all()
    with pytest.raises(UserError, match="encoded with chroma_separated False, not True"):
        encode(tmp_path / "music", tmp_path / "mixed", "nano", **settings)
    again = encode(tmp_path / "music", tmp_path / "mixed", "nano", **settings, separate=False)
    assert again.fingerprint == mixed.fingerprint


# --- What breaks ---------------------------------------------------------------------------------


def test_what_changed_in_the_melodies_is_said(home, tmp_path):
    name = "chroma-00000.npy"

    def draw_many(folder) -> None:
        shards = CodeShards.open(folder)
        for seed in range(50):
            shards.segment_with_chroma(np.random.default_rng(seed), 100)

    def broken(change) -> str:
        return complaint(home / "melody", name, change, draw_many, tmp_path)

    assert "changed since" in broken(lambda data: data + b"0")
    assert "pitch classes beyond 11" in broken(lambda data: data[:-999] + b"\x0c" * 999)
    assert "broken: encode again" in broken(lambda data: b"\x80" * len(data))
    assert "cannot read" in broken(lambda data: None)
    array = np.load(home / "melody" / name)

    def of_objects(data):
        np.save(tmp_path / "objects.npy", array.astype(object), allow_pickle=True)
        return (tmp_path / "objects.npy").read_bytes()[: len(data)].ljust(len(data), b"\0")

    assert "broken: encode again" in broken(of_objects)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chroma_bins", 0),
        ("chroma_bins", 257),
        ("chroma_bins", None),
        ("chroma_hop", 1 << 40),
        ("chroma_hop", 4095),
        ("chroma_window", 1 << 40),
        ("chroma_places", 0),
        ("chroma_places", 3),
        ("chroma_places", "5"),
    ],
)
def test_a_hostile_index_of_melodies_is_an_error_of_one_line(home, tmp_path, field, value):
    shutil.copytree(home / "melody", tmp_path / "hostile")
    index = json.loads((tmp_path / "hostile/index.json").read_text())
    index[field] = value
    (tmp_path / "hostile/index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="is broken") as caught:
        CodeShards.open(tmp_path / "hostile")
    assert "\n" not in str(caught.value)


def test_the_fingerprint_covers_the_melodies(tmp_path):
    made = set()
    for pitch in (3, 4):
        folder = tmp_path / str(pitch)
        writer = ShardWriter(folder, fixed(16000, 640, 2), 1, lambda line: None)
        clip = CodeClip("a", 0, 9, 9, None, (1, 2), MusicInfo())
        writer.add(clip, np.zeros((2, 9), np.int16), np.full((9, 5), pitch, np.uint8))
        writer.finish([0, 0], Skipped())
        made.add(CodeShards.open(folder).fingerprint)
    assert len(made) == 2


def test_a_killed_encoding_goes_on_with_the_same_melodies(tmp_path, monkeypatch):
    """Killed before each of the files that it writes."""
    codec = types.SimpleNamespace(
        config=EncodecConfig(sample_rate=4000, ratios=(8, 8), n_q=2, bins=1000, lstm=0),
        name="loud", fingerprint="f", sample_rate=4000, channels=1, encodec=None,
    )  # fmt: skip

    def loudness(encodec, batch):
        frames = np.abs(batch[:, 0]).reshape(len(batch), 1, -1, 64).sum(-1) * 10
        return frames.astype(np.int16).repeat(2, axis=1)

    melody = OFFICIAL_MODELS["facebook/musicgen-melody"].lm
    monkeypatch.setattr(encoding, "load_codec", lambda model: (codec, 1, melody, None))
    monkeypatch.setattr(encoding, "_encode", loudness)
    data = make_folder(tmp_path / "data", [1.0, 1.5, 1.2])
    settings: dict[str, Any] = {"seconds": 1.0, "shard_mb": 4 * 60 / 2**20}
    whole = encode(data, tmp_path / "whole", "loud", **settings)
    files = {f.name: f.read_bytes() for f in whole.folder.iterdir()}
    assert len([name for name in files if name.startswith("chroma")]) == 3
    replace = os.replace
    for stop in range(30):
        out, left = tmp_path / f"killed {stop}", iter(range(stop))

        def dying(source, target, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        try:
            encode(data, out, "loud", **settings)
            break
        except KeyboardInterrupt:
            monkeypatch.setattr(os, "replace", replace)
        assert encode(data, out, "loud", **settings).fingerprint == whole.fingerprint
        assert {f.name: f.read_bytes() for f in out.iterdir()} == files
    assert stop == len(files)


# --- Training ------------------------------------------------------------------------------------


def tokenize(texts):
    return np.zeros((len(texts), 2), np.int32), np.zeros((len(texts), 2), bool)


def told_by_the_melody(folder):
    """Clips without a prompt in which every code is three times the pitch class that sounds."""
    settings = fixed(4000, 80, 4) | {"card": 37}
    writer = ShardWriter(folder, settings, 1 << 20, lambda line: None)
    for pitch in range(12):
        clip = CodeClip(f"{pitch}.wav", 0, 40, 40, None, (1, 2), MusicInfo())
        codes = np.full((4, 40), 3 * pitch, np.int16)
        writer.add(clip, codes, np.full((40, 5), pitch, np.uint8))
    writer.finish([0] * 4, Skipped())
    return CodeShards.open(folder)


def test_a_model_learns_what_only_the_melody_tells(tmp_path):
    """The first code of a segment cannot be known from those before it: there are none."""
    examples = told_by_the_melody(tmp_path / "codes")
    config = lm.LMTrainConfig(
        phases=(lm.Phase(80, 4, 16),),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5, muon=False),
        dropout=Dropout(0.0),
    )
    shape = melody_shape(shallow.MELODY)
    assert shape is not None
    state = lm_loop.train(shallow.MELODY, config, examples, tokenize)
    last = dataclasses.replace(config, phases=(lm.Phase(1, 4, 16),), seed=1)
    (_, batch), *_ = lm_loop.batches(examples, tokenize, last, 0, chroma_shape=shape)
    chroma, given = batch.chroma, batch.has_audio
    assert chroma.shape == (16, *shape)
    assert given.all()
    loss = jax.jit(lm.make_loss(shallow.MELODY))

    def of(chroma, given):
        changed = dataclasses.replace(batch, chroma=chroma, has_audio=given)
        return float(loss(state.params, changed)[0])

    true, other, none = (
        of(chroma, given), of(np.roll(chroma, 1, axis=0), given), of(chroma, ~given)
    )  # fmt: skip
    assert true < 0.5
    assert other > true + 0.2
    assert none > true + 0.2


def test_a_short_melody_repeats_and_one_that_is_left_out_keeps_its_place(tmp_path):
    examples = told_by_the_melody(tmp_path / "codes")
    config = lm.LMTrainConfig(phases=(lm.Phase(1, 4, 64),), dropout=MELODY_DROPOUT)
    (_, batch), *_ = lm_loop.batches(examples, tokenize, config, 0, chroma_shape=(10, 12))
    chroma, given = batch.chroma, batch.has_audio
    assert chroma.shape == (64, 10, 12)
    assert 0.2 < given.mean() < 0.6  # 0.8 * 0.5
    assert not chroma[~given].any()
    segment = examples.segment_with_chroma
    rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0, int(given.argmax()))))
    own = segment(rng, 4)[2]
    assert own is not None
    assert own.shape == (5, 12)
    np.testing.assert_array_equal(chroma[given.argmax()], np.concatenate([own, own]))
    nobody = dataclasses.replace(config, dropout=Dropout(1.0))
    (_, batch), *_ = lm_loop.batches(examples, tokenize, nobody, 0, chroma_shape=(10, 12))
    assert batch.chroma.shape == (64, 10, 12)
    assert not batch.has_audio.any()


# --- Whole runs, by the command line -------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small melody model, music, and its codes by the command."""
    small = tmp_path_factory.mktemp("small")
    testing.save_random_model(small / "model", shallow.MELODY)
    testing.save_random_model(small / "text-model", shallow.TEXT)
    render(small / "music", 2, 6.0)
    for name, model in (("codes", "model"), ("text-codes", "text-model")):
        arguments = [str(small / "music"), str(small / name), "--model", str(small / model)]
        assert cli.main(["train", "encode", *arguments]) == 0
    return small


def train_lm(small, run, *options, codes="codes", preset="debug-melody"):
    command = ["train", "lm", preset, "--data", str(small / codes), "--run", str(run)]
    return cli.main([*command, "--base", str(small / "model"), "--steps", "12", *options])


@pytest.fixture(scope="module")
def trained(small):
    assert train_lm(small, small / "run", "--valid", str(small / "codes")) == 0
    return small / "run"


def weights(folder):
    return testing.model_params(MusicGen.from_pretrained(folder, dtype="float32"))


def test_from_audio_to_a_melody_model(small, trained, tmp_path):
    """What was trained plays, and follows the melody that it is given."""
    model = MusicGen.from_pretrained(trained / "model")
    assert model.config.lm.chroma_bins == 12
    recorded = records(trained)
    assert any("valid" in record for record in recorded)
    song, rate = audio.read(small / "music/00000.wav")
    given = model.generate_with_chroma(["a song"], song, rate, duration=0.5, separate=False)
    assert given.codes.shape == (1, 4, 25)
    out = tmp_path / "out.wav"
    command = ["generate", "a song", "--model", str(trained / "model"), "--duration", "0.5"]
    assert cli.main([*command, "--melody", str(small / "music/00001.wav"), "-o", str(out)]) == 0
    assert out.is_file()


def test_a_run_that_was_cut_off_ends_bit_by_bit_as_it_would_have(
    small, trained, tmp_path, monkeypatch
):
    drawn, left = CodeShards.segment_with_chroma, iter(range(46))  # after the save at step 10

    def dying(self, rng, frames):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return drawn(self, rng, frames)

    monkeypatch.setattr(CodeShards, "segment_with_chroma", dying)
    assert train_lm(small, tmp_path / "run") == 130
    assert (tmp_path / "run/checkpoints/10").is_dir()
    assert not (tmp_path / "run/model").exists()
    monkeypatch.setattr(CodeShards, "segment_with_chroma", drawn)
    assert train_lm(small, tmp_path / "run", "--resume") == 0
    for name in ("model", "model-last"):
        ours, theirs = weights(tmp_path / "run" / name), weights(trained / name)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    "lora", [[], pytest.param(["--lora", "2"], marks=pytest.mark.slow)], ids=["whole", "adapter"]
)
def test_finetuning_from_audio(small, tmp_path, capsys, lora):
    """A segment as long as the window; melodies are encoded on the way, and trained on."""
    config = make_config(str(small / "model"), "x", codes="y")
    assert config.train.dropout == MELODY_DROPOUT
    assert make_config(str(small / "text-model"), "x", codes="y").train.dropout == Dropout()
    run = tmp_path / "run"
    command = ["finetune", str(small / "model"), str(small / "music"), "--run", str(run)]
    command += ["--steps", "3", "--batch-size", "4", "--learning-rate", "1e-2", "--seconds", "1"]
    assert cli.main([*command, *lora]) == 0
    out = capsys.readouterr().out
    assert "melodies: of all instruments" in out
    assert CodeShards.open(f"{run}-codes").chroma_bins == 12
    if not lora:
        before, after = (
            weights(f)["lm"]["chroma_conditioner"] for f in (small / "model", run / "model")
        )
        change = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), before, after)
        assert min(jax.tree.leaves(change)) > 0


def test_data_that_does_not_fit_is_one_line(small, tmp_path, capsys):
    capsys.readouterr()
    run, text = str(tmp_path / "run"), str(small / "text-codes")
    again = f"musicgen-jax train encode DATA OUT --model {small / 'model'} --melody"
    for arguments in (
        ["finetune", str(small / "model"), text],
        ["train", "lm", "debug-melody", "--data", text, "--base", str(small / "model")],
        ["train", "lm", "debug-melody", "--data", str(small / "codes"), "--valid", text,
         "--base", str(small / "model")],
    ):  # fmt: skip
        assert cli.main([*arguments, "--run", run]) == 2
        error = capsys.readouterr().err
        assert "needs melodies of 12 pitch classes" in error
        assert again in error
        assert error.count("\n") == 1
        assert not Path(run).exists()


def test_melodies_of_another_hop_are_refused(small):
    lm = dataclasses.replace(shallow.MELODY.lm, chroma_window=2048, chroma_hop=1280)
    shards = CodeShards.open(small / "codes")
    with pytest.raises(UserError, match=r"of 2048 and 1280 samples, .* has 16384 and 4096"):
        shards.require_chroma(lm, "model")


def test_a_text_model_does_not_hear_the_melodies_that_are_there(small):
    """Of codes with melodies and without it gets the same batches."""
    config = lm.LMTrainConfig(phases=(lm.Phase(2, 20, 4),))
    drawn = []
    for name in ("codes", "text-codes"):
        examples = train_lm_command._open(
            str(small / name), testing.DEBUG, str(small / "text-model")
        )
        drawn.append([batch for _, batch in lm_loop.batches(examples, tokenize, config, 0)])
    assert drawn[0][0].chroma is drawn[0][0].has_audio is None
    jax.tree.map(np.testing.assert_array_equal, *drawn)


@pytest.mark.slow
def test_a_killed_process_ends_with_the_same_fingerprint(small, tmp_path):
    """SIGKILL, once a shard's melodies are written."""
    music = make_folder(tmp_path / "music", [2.0] * 16)
    command = ["train", "encode", str(music), "{}", "--model", str(small / "model")]
    command += ["--seconds", "1", "--shard-mb", "0.003"]

    def into(name):
        return [word.format(tmp_path / name) for word in command]

    line = [sys.executable, "-m", "musicgen_jax", *into("killed")]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)
    first = tmp_path / "killed/chroma-00000.npy"
    while not first.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/index.json").exists()
    for name in ("killed", "whole"):
        assert cli.main(into(name)) == 0
    killed, whole = (CodeShards.open(tmp_path / name) for name in ("killed", "whole"))
    assert killed.fingerprint == whole.fingerprint
    killed, whole = (
        {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in shards.folder.iterdir()}
        for shards in (killed, whole)
    )
    # SIGKILL between a temporary's creation and its first byte leaves an empty one for a minute.
    assert {name: digest for name, digest in killed.items() if name[0] != "."} == whole


def test_the_preset_is_a_melody_model():
    sizes = PRESETS["debug-melody"].lm
    assert (sizes.conditioning, sizes.chroma_bins) == ("prepend", 12)
    assert PRESETS["debug-melody"].training.dropout == Dropout(0.2, 0.0, 0.5)
