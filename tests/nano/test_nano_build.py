"""The one command that makes the bundled model, at a hundredth of its size."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from musicgen_jax import MusicGen
from musicgen_jax.config import EncodecConfig, LMConfig, MusicGenConfig, T5Config
from musicgen_jax.nano import build, composer, train_on
from musicgen_jax.nano.pieces import CLIP_FRAMES, Library, Pieces, spec_of
from musicgen_jax.nano.weights import language_model
from musicgen_jax.training import lm as lm_training
from musicgen_jax.training import state_file
from musicgen_jax.training.lm import Phase

CODEC = EncodecConfig(sample_rate=16000, n_filters=2, dimension=4, bins=16, lstm=0)
MODEL = MusicGenConfig(
    t5=T5Config(vocab_size=150, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2),
    lm=LMConfig(dim=16, num_heads=2, num_layers=1, card=16, text_dim=8),
    encodec=CODEC,
    name="nano",
)


@pytest.fixture
def tiny(monkeypatch):
    codec_training = dataclasses.replace(
        build.CODEC_TRAINING,
        steps=4,
        unquantized_steps=2,
        warmup_steps=1,
        batch_size=2,
        segment_frames=8,
        windows=(256,),
    )
    lm_training = dataclasses.replace(build.LM_TRAINING, phases=(Phase(2, 8, 2),))
    sizes = {
        "CODEC": CODEC,
        "MODEL": MODEL,
        "CODEC_TRAINING": codec_training,
        "DECODER_TRAINING": dataclasses.replace(
            build.DECODER_TRAINING,
            steps=3,
            warmup_steps=1,
            batch_size=2,
            segment_frames=8,
            windows=(256,),
        ),
        "DECODER_PIECES": 2,
        "LM_TRAINING": lm_training,
        "TEXT_TRAINING": dataclasses.replace(build.TEXT_TRAINING, steps=2, batch_size=3),
        "CODEC_PIECES": 2,
        "SHORT_PIECES": 2,
        "LONG_PIECES": 1,
        "HELD_OUT_PIECES": 2,
        "TOKENIZER_CAPTIONS": 500,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(build, name, value)


@pytest.mark.slow
def test_a_build_makes_a_model_that_plays_and_goes_on_where_it_stopped(tiny, tmp_path):
    folder = build.build(tmp_path / "run")
    model = MusicGen.from_pretrained(folder)
    out = model.generate(["a calm waltz for solo piano"], duration=1.0)
    assert out.audio.shape == (1, 1, 16000)
    assert out.codes.shape == (1, 4, 25)
    logs = (tmp_path / "run" / "lm.jsonl").read_text()
    assert "held out" in logs
    config = (folder / "config.json").read_bytes()
    assert build.build(tmp_path / "run") == folder  # every stage is there: nothing is trained
    assert (tmp_path / "run" / "lm.jsonl").read_text() == logs
    assert (folder / "config.json").read_bytes() == config

    # It trains on with new pieces. Codec and text encoder stay, and its language model becomes a
    # mean of the weights before and after.
    settings = dataclasses.replace(train_on.training(), phases=(Phase(1, 8, 2), Phase(1, 16, 2)))
    more = train_on.build_on(tmp_path / "on", folder, settings, range(5, 7), range(7, 8), 0.25)
    assert np.load(tmp_path / "on" / "short.npz")["seeds"].tolist() == [
        build.LM_SEED + 5,
        build.LM_SEED + 6,
    ]
    for part in ("t5", "encodec"):
        before, after = (part_of(path, part) for path in (folder, more))
        jax.tree.map(np.testing.assert_array_equal, before, after)
    logs = (tmp_path / "on" / "lm.jsonl").read_text()
    trained = state_file.load_state(
        tmp_path / "on" / "lm", lm_training.abstract_state(MODEL, settings)
    ).params["lm"]
    before, after = language_model(folder), language_model(more)

    def assert_between(old, new, mean):
        assert not np.array_equal(old, new)
        wanted = 0.75 * old + 0.25 * new
        np.testing.assert_allclose(mean, wanted, atol=1 / 127 * np.abs(wanted).max())  # int8

    jax.tree.map(assert_between, before, jax.tree.map(np.asarray, trained), after)
    assert train_on.build_on(tmp_path / "on", folder, settings) == more  # finished already
    assert (tmp_path / "on" / "lm.jsonl").read_text() == logs


def part_of(folder, part):
    model = MusicGen.from_pretrained(folder)
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(getattr(model, part), nnx.Param)))


def test_segments_start_with_a_phrase_and_carry_a_caption(tmp_path):
    frames = CLIP_FRAMES
    codes = np.arange(frames, dtype=np.int16) * np.ones((3, 4, 1), np.int16)
    pieces = Pieces(codes, np.arange(build.LM_SEED, build.LM_SEED + 3))
    pieces.save(tmp_path / "pieces.npz")
    pieces = Pieces.load(tmp_path / "pieces.npz")
    phrases = set()
    for spec in map(spec_of, pieces.seeds):
        phrases.add(4 * composer.EIGHTHS_PER_BAR[spec.metre] * spec.frames_per_eighth)
    short = Pieces(codes[:, :, :90], pieces.seeds)  # too short: never drawn
    rng = np.random.default_rng(0)
    for _ in range(50):
        segment, caption, labels = Library((short, pieces)).segment_with_labels(rng, 100)
        assert segment.shape == (4, 100)
        assert any(segment[0, 0] % phrase == 0 for phrase in phrases)
        assert caption
        assert labels.shape == (6, 100)
        eighth, frame, _, bar, *_ = labels[:, 0]
        assert bar % 4 == 0
        assert eighth in (0, 6, 14)  # the first of a bar, in each metre
        assert frame in (0, 12, 20)
    with pytest.raises(ValueError, match="800 frames"):
        Library((short, pieces)).segment_with_labels(rng, 800)
