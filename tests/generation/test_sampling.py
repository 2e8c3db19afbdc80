"""The sampler against plain sorting, and its draws against the distribution they are drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from musicgen_jax.generation.sampling import Form, guide, sample, top_k_mask, top_p_mask

# Few distinct values, so that ties happen; zeros of both signs and extremes among them.
VALUES = st.sampled_from(
    [-np.inf, -3e38, -7.5, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1.5, 2.0, 3e38]
)
# Without denormals: a CPU may flush them to zero, and then what they order is tied.
LOGITS = st.floats(-8, 8, width=32, allow_subnormal=False)
rows = hnp.arrays(np.float32, (2, 3, 11), elements=VALUES | st.floats(-5, 5, width=32))
top_k = jax.jit(top_k_mask, static_argnums=1, static_argnames="bits")
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


def test_the_likeliest_survives_any_nucleus():
    logits = jnp.asarray([[0.0, 5.0, 1.0], [-jnp.inf, -jnp.inf, 2.0]])
    np.testing.assert_array_equal(top_p(logits, 0.0), [[0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(top_p(logits, 1.0)[0], [1, 1, 1])


def draw(logits, form: Form, n: int = 6000, **numbers) -> np.ndarray:
    """Frequencies of n draws of one book."""
    logits = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, 1, len(logits)))
    tokens = jax.jit(sample, static_argnums=2)(logits, keys(n), form, **numbers)
    assert tokens.dtype == jnp.int32
    return np.bincount(np.asarray(tokens)[:, 0], minlength=logits.shape[-1]) / n


LOGITS = np.log([0.4, 0.05, 0.3, 0.15, 0.1])


@pytest.mark.parametrize(
    ("form", "numbers", "expected"),
    [
        (Form(top_k=0), {}, [0.4, 0.05, 0.3, 0.15, 0.1]),
        (Form(top_k=2), {}, [4 / 7, 0, 3 / 7, 0, 0]),
        (Form(top_k=0, nucleus=True), {"top_p": 0.75}, [8 / 17, 0, 6 / 17, 3 / 17, 0]),
        # Top-k leaves 0.4, 0.3, 0.15: above the third is 0.82 of their mass, 0.7 of the whole.
        (Form(top_k=3, nucleus=True), {"top_p": 0.75}, [4 / 7, 0, 3 / 7, 0, 0]),
        (Form(top_k=0), {"temperature": 0.5}, np.array([16, 0.25, 9, 2.25, 1]) / 28.5),
        (Form(greedy=True), {}, [1, 0, 0, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(form, numbers, expected):
    np.testing.assert_allclose(draw(LOGITS, form, **numbers), expected, atol=0.025)


def test_guidance_formula_and_row_order():
    logits = jnp.asarray([[1.0, 2.0], [5.0, 5.0], [0.0, 4.0], [5.0, 6.0]])
    np.testing.assert_allclose(guide(logits, 3.0), [[3.0, -2.0], [5.0, 3.0]])
    np.testing.assert_allclose(guide(logits, 1.0), logits[:2])


def test_a_row_draws_from_its_own_key():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 50)), jnp.float32)
    together = sample(logits, keys(3), Form(top_k=20))
    for i in range(3):
        alone = sample(logits[i : i + 1], keys(3)[i : i + 1], Form(top_k=20))
        np.testing.assert_array_equal(alone[0], together[i])
    assert not np.array_equal(together, sample(logits, keys(3, seed=1), Form(top_k=20)))
