"""Training: losses against their definitions, codebooks that live, runs that resume exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicgen_jax.config import EncodecConfig, LMConfig, MusicGenConfig, T5Config
from musicgen_jax.errors import UserError
from musicgen_jax.nano.build import CODEC_TRAINING
from musicgen_jax.training import codebooks, codec, lm, lm_loop, losses, state_file, text
from musicgen_jax.training.batches import Dropout
from musicgen_jax.training.losses import codebook_cross_entropy, mel_filters
from tests.helpers.tolerance import assert_close

magnitudes = jax.jit(losses.magnitudes, static_argnums=1)
spectral_loss = jax.jit(losses.spectral_loss, static_argnums=(2, 3))

CODEC = EncodecConfig(
    sample_rate=8000, n_filters=2, ratios=(4, 4), dimension=4, n_q=2, bins=8, lstm=0
)
CODEC_RUN = dataclasses.replace(
    CODEC_TRAINING,
    steps=8,
    unquantized_steps=3,
    warmup_steps=2,
    batch_size=2,
    segment_frames=16,
    windows=(64, 32),
)
MODEL = MusicGenConfig(
    t5=T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2),
    lm=LMConfig(dim=16, num_heads=2, num_layers=1, n_q=2, card=8, delays=(0, 1), text_dim=8),
    encodec=CODEC,
)
LM_RUN = lm.LMTrainConfig(phases=(lm.Phase(4, 6, 3), lm.Phase(3, 12, 2)), dropout=Dropout(0.3))


def test_magnitude_of_a_sine_is_half_its_amplitude_at_its_bin():
    time = np.arange(4096) / 8000
    sine = (0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)
    middle = np.asarray(magnitudes(sine[None], 256))[0, 20]
    assert middle.argmax() == 1000 * 256 // 8000
    assert abs(float(middle.max()) - 0.5) < 1e-3


def test_spectral_loss_is_zero_for_equal_sounds_and_grows_with_the_difference():
    sound, noise = 0.1 * np.random.default_rng(0).standard_normal((2, 2, 2000)).astype(np.float32)
    far = [
        float(spectral_loss(sound, sound + np.float32(a) * noise, 8000, (256, 128)))
        for a in (0, 0.1, 1)
    ]
    assert far[0] == 0
    assert far[0] < far[1] < far[2]


def test_spectral_loss_has_a_finite_gradient_in_silence():
    silence = np.zeros((1, 1000), np.float32)
    gradient = jax.jit(jax.grad(lambda x: spectral_loss(silence, x, 8000, (256,))))(silence)
    assert np.isfinite(gradient).all()


def test_mel_filters_are_averages():
    filters = mel_filters(16000, 1024, 40)
    np.testing.assert_allclose(filters.sum(0), 1, rtol=1e-5)
    assert (filters >= 0).all()


def test_cross_entropy_counts_valid_positions_only():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 5, 7)).astype(np.float32)
    codes = rng.integers(7, size=(2, 3, 5))
    mask = np.ones((2, 3, 5), bool)
    mask[:, 1, 3:] = False
    logits[:, 1, 3:] = np.nan  # as compute_predictions leaves them
    expected = []
    for k in range(3):
        valid = [(b, t) for b in range(2) for t in range(5) if mask[b, k, t]]
        terms = [
            np.log(np.exp(logits[b, k, t]).sum()) - logits[b, k, t, codes[b, k, t]]
            for b, t in valid
        ]
        expected.append(np.mean(terms))
    loss = jax.jit(codebook_cross_entropy)
    assert_close(loss(logits, codes, mask), expected)
    gradient = jax.jit(jax.grad(lambda x: loss(x, codes, mask).sum()))(logits)
    assert np.isfinite(gradient).all()


def test_kmeans_finds_separate_clusters():
    rng = np.random.default_rng(0)
    centres = np.array([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]])
    points = (centres[rng.integers(3, size=600)] + 0.1 * rng.standard_normal((600, 2))).astype("f")
    found = np.asarray(codebooks.kmeans(points, n_q=1, bins=3).embed[0])
    nearest = np.linalg.norm(found[:, None] - centres, axis=-1).min(0)
    assert nearest.max() < 0.1


def test_codes_move_to_what_they_win_and_dead_ones_revive():
    embed = jnp.asarray([[[0.0, 0.0], [100.0, 100.0]]])
    state = codebooks.CodebookState(embed, jnp.ones((1, 2)), embed.copy())
    latents = jnp.full((50, 2), 2.0)
    codes = jnp.zeros((50, 1), jnp.int32)

    @jax.jit
    def update(state, seed):
        key = jax.random.key(seed)
        return codebooks.update(state, latents, codes, key, decay=0.99, dead_below=0.02)

    for i in range(600):
        state = update(state, i)
    assert_close(state.embed[0, 0], [2.0, 2.0], relative=1e-2)
    assert_close(state.embed[0, 1], [2.0, 2.0], relative=1e-3)  # died, came back among the latents


def sine_clips():
    time = np.arange(800) / 8000
    return np.stack([0.3 * np.sin(2 * np.pi * f * time) for f in (250, 500, 750)])


@pytest.fixture(scope="module")
def codec_runs():
    """Logs and the final state of one run, and of the same run stopped after five steps."""
    saved, logs = {}, []
    whole = codec.train(
        CODEC,
        CODEC_RUN,
        sine_clips(),
        log=logs.append,
        save=lambda state, score: saved.update({int(state.step): jax.device_get(state)}),
        every=4,
        save_every=5,
    )
    resumed = codec.train(CODEC, CODEC_RUN, sine_clips(), state=jax.tree.map(jnp.asarray, saved[5]))
    return logs, whole, resumed


def test_codec_training_reports_and_lowers_the_loss(codec_runs):
    logs, _, _ = codec_runs
    assert [record["step"] for record in logs] == [4, 5, 8]
    assert all(np.isfinite(record["loss"]) for record in logs)


def test_resumed_codec_run_equals_an_uninterrupted_one(codec_runs):
    _, whole, resumed = codec_runs
    assert int(whole.step) == int(resumed.step) == 8
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


class Patterns:
    """Codes that repeat with a period given by the prompt."""

    def segment(self, rng, frames):
        period = int(rng.integers(1, 4))
        codes = np.stack([np.arange(frames) % period, np.arange(frames) % period + 4])
        return codes, "x" * period


def tokenize(texts):
    ids = np.zeros((len(texts), 4), np.int32)
    mask = np.zeros((len(texts), 4), bool)
    for row, prompt in enumerate(texts):
        ids[row, : len(prompt or "")] = 5
        mask[row, : len(prompt or "")] = True
    return ids, mask


def test_phases_change_length_and_batch():
    shapes = [batch.codes.shape for _, batch in lm_loop.batches(Patterns(), tokenize, LM_RUN, 0)]
    assert shapes == [(3, 2, 6)] * 4 + [(2, 2, 12)] * 3
    with pytest.raises(ValueError, match="last phase"):
        LM_RUN.phase_at(7)


def test_batches_do_not_depend_on_where_a_run_began():
    whole = list(lm_loop.batches(Patterns(), tokenize, LM_RUN, 0))[5:]
    late = list(lm_loop.batches(Patterns(), tokenize, LM_RUN, 5))
    jax.tree.map(np.testing.assert_array_equal, whole, late)


def test_language_model_learns_a_pattern_and_resumes_exactly(tmp_path):
    run = dataclasses.replace(LM_RUN, phases=(lm.Phase(60, 12, 8),))
    logs = []

    def save(state, score):
        state_file.save_state(tmp_path / f"state-{int(state.step)}", state)

    whole = lm_loop.train(
        MODEL, run, Patterns(), tokenize, log=logs.append, save=save, every=20, save_every=50
    )
    assert logs[-1]["loss"] < 0.6 * logs[0]["loss"]
    abstract = lm.abstract_state(MODEL, run)
    state = state_file.load_state(tmp_path / "state-50", abstract)
    resumed = lm_loop.train(MODEL, run, Patterns(), tokenize, state=state)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


@pytest.mark.parametrize("freeze", [True, False])
def test_text_encoder_moves_only_unless_it_is_frozen(freeze):
    run = dataclasses.replace(LM_RUN, phases=(lm.Phase(2, 6, 3),), freeze_text=freeze)
    began = jax.device_get(lm.init(MODEL, run).params)
    ended = lm_loop.train(MODEL, run, Patterns(), tokenize).params
    equal = jax.tree.map(np.array_equal, began, jax.device_get(ended))
    assert all(jax.tree.leaves(equal["t5"])) == freeze
    assert not all(jax.tree.leaves(equal["lm"]))


def test_text_encoder_learns_what_words_mean():
    def batch(rng, size):
        ids = rng.integers(2, 6, (size, 4)).astype(np.int32)
        ids[:, 0] = rng.integers(2, 5, size)  # what matters stands first
        mask = np.arange(4) < rng.integers(1, 5, (size, 1))
        return ids, mask, {"first": ids[:, 0] - 2, "odd": ids[:, 0] % 2}

    logs = []
    run = text.TextTrainConfig(steps=200, batch_size=16)
    params = text.train(MODEL.t5, run, {"first": 3, "odd": 2}, batch, log=logs.append, every=50)
    assert logs[0]["first"] < logs[-1]["first"] > 0.8
    assert logs[-1]["odd"] > 0.8
    assert jax.tree.structure(params) == jax.tree.structure(lm.init(MODEL, LM_RUN).params["t5"])


def test_a_state_is_replaced_whole(tmp_path):
    path = tmp_path / "state"
    state_file.save_state(path, {"a": jnp.arange(3), "b": {"c": jnp.ones(2)}})
    state_file.save_state(path, {"a": jnp.arange(3) + 1, "b": {"c": jnp.zeros(2)}})
    abstract = {
        "a": jax.ShapeDtypeStruct((3,), jnp.int32),
        "b": {"c": jax.ShapeDtypeStruct((2,), jnp.float32)},
    }
    loaded = state_file.load_state(path, abstract)
    np.testing.assert_array_equal(loaded["a"], [1, 2, 3])
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    # Stopped between its two renames, a save leaves the old state under another name.
    path.rename(tmp_path / ".state.old")
    np.testing.assert_array_equal(state_file.load_state(path, abstract)["a"], [1, 2, 3])


def test_missing_and_damaged_states_are_named(tmp_path):
    abstract = {"a": jax.ShapeDtypeStruct((3,), jnp.int32)}
    with pytest.raises(UserError, match="no training state"):
        state_file.load_state(tmp_path / "none", abstract)
    (tmp_path / "broken").mkdir()
    with pytest.raises(UserError, match="damaged"):
        state_file.load_state(tmp_path / "broken", abstract)
