"""Negative descriptions: guidance against a text in place of nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.errors import UserError
from musicgen_jax.generation.guidance import copies_of, guided
from musicgen_jax.generation.sampling import Numbers, guide
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.nn import patterns
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM
from tests.helpers import shallow
from tests.helpers.generation import generate_codes
from tests.helpers.lm_models import CONFIG, FORMS, make_condition, make_lm
from tests.helpers.tolerance import assert_close

FRAMES = 6
forward = jax.jit(LM.__call__)


def both(prefix: int, negatives: list[int]) -> tuple[Condition, Embedded]:
    """Three clips, and what each is to move away from; 0 vectors are no negative description."""
    condition = make_condition([3, 5, 0], 5, prefix=prefix)
    against = make_condition([20, *negatives][1:], 5).text
    assert against is not None
    return condition, Embedded(against.vectors[:, ::-1], against.mask)


def logits(lm, condition: Condition, steps) -> np.ndarray:
    return np.asarray(forward(lm, jnp.asarray(steps), condition))


@pytest.mark.parametrize(("conditioning", "prefix"), FORMS)
def test_guidance_is_the_formula(conditioning, prefix):
    """From two runs of the model; the tokens of the compiled loop are its most likely ones."""
    lm = make_lm(conditioning)
    condition, against = both(prefix, [4, 2, 5])
    sampling = Sampling(use_sampling=False, cfg_coef=2.5)
    asked = dataclasses.replace(condition, against=against)
    codes = generate_codes(lm, asked, num_frames=FRAMES, use_sampling=False, cfg_coef=2.5)
    steps = patterns.to_steps(codes, lm.config.delays, lm.config.special_token)
    other = guided(lm, dataclasses.replace(condition, text=against), copies=1)
    if other.audio is not None:  # the other side knows nothing of the audio
        other = lm.fill_nulls(dataclasses.replace(
            other, audio=Embedded(0 * other.audio.vectors, other.audio.mask & False)
        ))  # fmt: skip
        filled = lm.fill_nulls(condition).audio
        other = dataclasses.replace(other, audio=Embedded(other.audio.vectors, filled.mask))
    positive = logits(lm, guided(lm, condition, copies=1), steps)
    negative = logits(lm, other, steps)
    expected = negative + (positive - negative) * 2.5
    sides = logits(lm, guided(lm, asked, copies=2), np.repeat(steps, 2, axis=0))
    sides = sides.reshape(3, 2, *sides.shape[1:]).swapaxes(0, 1)
    made = guide(jnp.asarray(sides), Numbers.of([sampling] * 3))
    assert_close(made, expected, relative=1e-5)
    for k, delay in enumerate(lm.config.delays):
        drawn = expected[:, k, delay : delay + FRAMES].argmax(-1)
        np.testing.assert_array_equal(codes[:, k], drawn)


@pytest.mark.parametrize(("conditioning", "prefix"), FORMS)
def test_a_null_negative_is_no_negative(conditioning, prefix):
    lm = make_lm(conditioning)
    condition, against = both(prefix, [0, 0, 0])
    asked = dataclasses.replace(condition, against=against)
    steps = np.arange(3 * CONFIG.n_q * 7).reshape(3, CONFIG.n_q, 7) % CONFIG.card
    plain, other = (guided(lm, each, copies=2) for each in (condition, asked))
    rows = np.repeat(steps, 2, axis=0)
    assert_close(logits(lm, other, rows), logits(lm, plain, rows), relative=1e-5)
    sampling = Sampling()
    assert copies_of(asked, sampling) == copies_of(condition, sampling) == 2


def test_three_sides_with_a_negative():
    """Under double guidance it stands in place of the row that knows nothing."""
    lm = make_lm("prepend")
    condition, against = both(4, [4, 0, 5])
    asked = dataclasses.replace(condition, against=against)
    three, two = (guided(lm, asked, copies=copies) for copies in (3, 2))
    plain = guided(lm, condition, copies=3)
    for part in ("text", "audio"):
        for leaf in ("vectors", "mask"):
            values = [np.asarray(getattr(getattr(c, part), leaf)) for c in (three, two, plain)]
            np.testing.assert_array_equal(values[0][2::3], values[1][1::2])
            np.testing.assert_array_equal(values[0][0::3], values[2][0::3])
            np.testing.assert_array_equal(values[0][1::3], values[2][1::3])


@pytest.fixture(scope="module")
def model():
    return testing.random_model(shallow.TEXT)


def test_empty_negatives_change_nothing(model):
    plain = model.generate(["a calm waltz", None], duration=0.4, seed=3)
    for empty in ([None, None], ["", None]):
        same = model.generate(
            ["a calm waltz", None], duration=0.4, seed=3, negative_descriptions=empty
        )
        np.testing.assert_array_equal(same.codes, plain.codes)
        assert same.program == plain.program


def test_rows_with_and_without_are_independent(model):
    texts, against = ["a calm waltz", None, "drums"], ["noise", "a b c d e", None]
    settings = {"duration": 0.4, "seed": [4, 5, 6]}
    together = model.generate(texts, **settings, negative_descriptions=against)
    assert "text=2x16" in str(together.program)
    plain = model.generate(texts, **settings)
    assert (together.codes != plain.codes).any(axis=(1, 2)).tolist() == [True, True, False]
    in_slots = model.generate(texts, **settings, negative_descriptions=against, slots=2)
    np.testing.assert_array_equal(in_slots.codes, together.codes)
    assert "text=2x64" in str(in_slots.program)
    for i in range(3):
        alone = model.generate(
            texts[i : i + 1], duration=0.4, seed=[4 + i], negative_descriptions=[against[i]]
        )
        np.testing.assert_array_equal(alone.codes[0], together.codes[i])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negative_descriptions": "noise"}, "must be a list of texts"),
        ({"negative_descriptions": ["a", "b"]}, "2 negative_descriptions for 1 clips"),
        ({"negative_descriptions": [3]}, "must be a text or None"),
        ({"negative_descriptions": ["a"], "cfg_coef": 1}, "cfg_coef 1 means no guidance"),
    ],
)
def test_refusals(model, settings, message):
    with pytest.raises(UserError, match=message):
        model.generate(["x"], duration=0.4, **settings)


def test_a_long_piece_resumes_only_with_its_own(model, tmp_path):
    settings = {"duration": 1.0, "checkpoint": tmp_path / "part"}
    model.generate(["x"], **settings, negative_descriptions=["noise"])
    with pytest.raises(UserError, match="cannot resume"):
        model.generate(["x"], **settings, negative_descriptions=["hiss"])
    with pytest.raises(UserError, match="cannot resume"):
        model.generate(["x"], **settings)
