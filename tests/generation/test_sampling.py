"""The sampler against plain sorting, and its draws against the distribution they are drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from musicgen_jax.generation import sampling as sampler
from musicgen_jax.generation.sampling import Mode, Numbers, sample, top_k_mask, top_p_mask
from musicgen_jax.generation.settings import Sampling

# Few distinct values, so that ties happen; zeros of both signs and extremes among them.
VALUES = st.sampled_from(
    [-np.inf, -3e38, -7.5, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1.5, 2.0, 3e38]
)
# Without denormals: a CPU may flush them to zero, and then what they order is tied.
LOGITS = st.floats(-8, 8, width=32, allow_subnormal=False)
rows = hnp.arrays(np.float32, (2, 3, 11), elements=VALUES | st.floats(-5, 5, width=32))
guide = jax.jit(sampler.guide)
top_k = jax.jit(top_k_mask, static_argnames="bits")
top_p = jax.jit(top_p_mask, static_argnames="bits")
BITS = st.sampled_from([None, 1, 4, 8])  # 4 is what accelerators run


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


@settings(deadline=None)
@given(rows, st.sampled_from([1, 2, 5, 10, 11, 400]), BITS)
def test_top_k_keeps_exactly_what_reaches_the_kth(logits, k, bits):
    # A CPU may flush denormals to zero, the reference must then see zeros too.
    logits = np.where(np.abs(logits) < 1e-37, 0, logits)
    kth = np.sort(logits, axis=-1)[..., ::-1][..., min(k, 11) - 1 : min(k, 11)]
    np.testing.assert_array_equal(top_k(logits, k, bits=bits), logits >= kth)


@pytest.mark.parametrize("bits", [1, 4])
def test_top_k_at_the_size_of_the_model(bits):
    logits = np.random.default_rng(0).normal(0, 3, (2, 4, 2048)).astype(np.float32)
    mask = np.asarray(top_k(logits, 250, bits=bits))
    np.testing.assert_array_equal(mask.sum(-1), 250)
    assert logits[mask].min() > np.where(mask, -np.inf, logits).max(-1).min()


@settings(deadline=None)
@given(hnp.arrays(np.float32, (4, 11), elements=LOGITS), st.floats(0, 1), BITS)
def test_top_p_keeps_what_has_little_mass_above_it(logits, p, bits):
    mass = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    mass /= mass.sum(-1, keepdims=True)
    above = np.where(logits[:, None, :] > logits[:, :, None], mass[:, None, :], 0).sum(-1)
    mask = np.asarray(top_p(logits, np.float32(p), bits=bits))
    clear = np.abs(above - p) > 1e-5  # at the edge the last digit decides
    np.testing.assert_array_equal(mask[clear], (above <= p)[clear])
    assert (mask == (logits == logits.max(-1, keepdims=True)))[mask].any()


def test_the_most_likely_token_survives_any_nucleus():
    logits = jnp.asarray([[0.0, 5.0, 1.0], [-jnp.inf, -jnp.inf, 2.0]])
    np.testing.assert_array_equal(top_p(logits, 0.0), [[0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(top_p(logits, 1.0)[0], [1, 1, 1])


draw = jax.jit(sample, static_argnums=3)


def sampled(logits, keys, *rows: Sampling, mode: Mode | None = None) -> jax.Array:
    """Tokens of one row for each of the settings, by the smallest program or a given one."""
    return draw(logits, keys, Numbers.of(rows), mode or Mode.of(rows))


LOGITS = np.log([0.4, 0.05, 0.3, 0.15, 0.1])
EXPECTED = [
    (Sampling(top_k=0), [0.4, 0.05, 0.3, 0.15, 0.1]),
    (Sampling(top_k=2), [4 / 7, 0, 3 / 7, 0, 0]),
    (Sampling(top_k=0, top_p=0.75), [8 / 17, 0, 6 / 17, 3 / 17, 0]),
    # Top-k leaves 0.4, 0.3, 0.15: above the third is 0.82 of their mass, 0.7 of the whole.
    (Sampling(top_k=3, top_p=0.75), [4 / 7, 0, 3 / 7, 0, 0]),
    (Sampling(top_k=0, temperature=0.5), np.array([16, 0.25, 9, 2.25, 1]) / 28.5),
    (Sampling(use_sampling=False), [1, 0, 0, 0, 0]),
    (Sampling(temperature=0), [1, 0, 0, 0, 0]),
]


@pytest.mark.parametrize(("sampling", "expected"), EXPECTED)
def test_draws_follow_the_distribution(sampling, expected):
    n = 6000
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (n, 1, 5))
    tokens = sampled(logits, keys(n), *[sampling] * n)
    assert tokens.dtype == jnp.int32
    drawn = np.bincount(np.asarray(tokens)[:, 0], minlength=5) / n
    np.testing.assert_allclose(drawn, expected, atol=0.025)


@pytest.mark.parametrize("size", [1e-300, 1e-45, 1e-39, 1e-38, 1e-30, 1e-15])
@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize("scale", [1.0, 1e7])
def test_next_to_nothing_is_the_most_likely_token(name, size, scale):
    """Also where float32 has no such number, or the quotient would have none."""
    logits = scale * np.random.default_rng(0).normal(size=(1, 4, 64)).astype(np.float32)
    numbers = Numbers.of([Sampling(**{name: size})])
    for mode in (Mode(top_k=True, nucleus=True), Mode(top_k=False, nucleus=True)):
        drawn = sample(logits, keys(1), numbers, mode)
        np.testing.assert_array_equal(drawn, logits.argmax(-1))


def test_rows_with_different_settings_share_a_program():
    """Each draws what it draws in the smallest program for its settings."""
    rows = [sampling for sampling, _ in EXPECTED] + [Sampling(top_k=10**12, top_p=1.0)]
    n = len(rows)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(n, 4, 50)), jnp.float32)
    together = sampled(logits, keys(n), *rows)
    for i, row in enumerate(rows):
        alone = sampled(logits[i : i + 1], keys(n)[i : i + 1], row)
        np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_top_p_0_and_1_are_off_in_a_program_that_has_it(off):
    """Exported programs have it whatever its value; a rounded sum of masses may exceed 1."""
    logits = jnp.asarray(np.random.default_rng(2).normal(0, 4, (2, 4, 2000)), jnp.float32)
    numbers = Numbers.of([Sampling(top_k=0, top_p=off)] * 2)
    with_it, without = (draw(logits, keys(2), numbers, Mode(False, False, on)) for on in (1, 0))
    np.testing.assert_array_equal(with_it, without)
    assert (with_it != logits.argmax(-1)).any()


def test_a_row_draws_the_same_whether_or_not_others_have_top_p():
    """A program with every part skips top-p where no row has it."""
    logits = jnp.asarray(np.random.default_rng(3).normal(0, 2, (2, 4, 400)), jnp.float32)
    plain, nucleus = Sampling(top_k=50), Sampling(top_k=0, top_p=0.5)
    drawn = {
        rows: draw(logits, keys(2), Numbers.of(rows), Mode(False, True, True))
        for rows in [(plain, plain), (plain, nucleus), (nucleus, plain), (nucleus, nucleus)]
    }
    for (first, second), tokens in drawn.items():
        np.testing.assert_array_equal(tokens[0], drawn[first, first][0])
        np.testing.assert_array_equal(tokens[1], drawn[second, second][1])
    assert (drawn[plain, plain] != drawn[nucleus, nucleus]).any()


def test_guidance_formula_and_row_order():
    conditional, null = jnp.asarray([[1.0, 2.0], [5.0, 5.0]]), jnp.asarray([[0.0, 4.0], [5.0, 6.0]])
    rows = [Sampling(cfg_coef=3.0), Sampling(cfg_coef=1.0)]
    guided = guide(jnp.stack([conditional, null]), Numbers.of(rows))
    np.testing.assert_allclose(guided, [[3.0, -2.0], [5.0, 5.0]])
    np.testing.assert_array_equal(guide(conditional[None], Numbers.of(rows)), conditional)


def test_a_row_without_guidance_keeps_its_logits_to_the_last_bit():
    sides = np.random.default_rng(0).normal(0, 9, (3, 2, 400)).astype(np.float32)
    once = Numbers.of([Sampling(cfg_coef=1.0), Sampling(cfg_coef=3.0, cfg_coef_beta=1.0)])
    for logits in (sides, sides[::2]):
        np.testing.assert_array_equal(guide(jnp.asarray(logits), once)[0], sides[0, 0])
    # Ordinary guidance in a program for double guidance is what it is without.
    both = [guide(jnp.asarray(logits), once)[1] for logits in (sides, sides[::2])]
    np.testing.assert_array_equal(*both)


def test_double_guidance_formula():
    conditional, audio, null = jnp.asarray([[1.0]]), jnp.asarray([[2.0]]), jnp.asarray([[4.0]])
    numbers = Numbers.of([Sampling(cfg_coef=3.0, cfg_coef_beta=5.0)])
    # 2 + (1 - 2) * 5 is -3, and 4 + (-3 - 4) * 3 is -17.
    np.testing.assert_allclose(guide(jnp.stack([conditional, audio, null]), numbers), [[-17.0]])


def test_a_row_draws_from_its_own_key():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 50)), jnp.float32)
    row = Sampling(top_k=20)
    together = sampled(logits, keys(3), row, row, row)
    for i in range(3):
        alone = sampled(logits[i : i + 1], keys(3)[i : i + 1], row)
        np.testing.assert_array_equal(alone[0], together[i])
    assert not np.array_equal(together, sampled(logits, keys(3, seed=1), row, row, row))
