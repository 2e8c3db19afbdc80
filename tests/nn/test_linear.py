"""`linear` and its derivatives, whichever way the product is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicgen_jax.nn.linear import Linear, linear
from musicgen_jax.nn.weights import Int8Weight, LoraWeight, quantize
from tests.helpers.lm_models import array
from tests.helpers.tolerance import assert_close


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return array(np.random.default_rng(seed).standard_normal(shape, np.float32), np.float32)


def derivatives(product, x, w, weights):
    """Of a sum of the products: by `x` alone, by `w` alone, and by both."""

    def loss(x, w):
        return jnp.sum(weights * product(x, w).astype(jnp.float32))

    gradients = [jax.grad(loss, argnums) for argnums in (0, 1, (0, 1))]
    return jax.jit(lambda *xw: [gradient(*xw) for gradient in gradients])(x, w)


@pytest.mark.parametrize("outputs", [10, 7])  # halved on a CPU, or not
@pytest.mark.parametrize("count", [1, 2, 129, 256, 257])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_derivatives_are_those_of_a_plain_product(count, outputs, dtype):
    x, w = normal(count, 24).astype(dtype), normal(outputs, 24, seed=1).astype(dtype)
    weights = normal(count, outputs, seed=2)
    ours = derivatives(linear, x, w, weights)
    plain = derivatives(lambda x, w: x.astype(jnp.float32) @ w.astype(jnp.float32).T, x, w, weights)
    tolerance = 2e-2 if dtype == jnp.bfloat16 else 1e-5
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance * float(jnp.abs(b).max())
        )


@pytest.mark.parametrize("count", [1, 2, 16, 32, 33, 200])
@pytest.mark.parametrize("outputs", [10, 7])
def test_int8_sums_are_whole_numbers_however_they_are_computed(count, outputs):
    x, w = normal(count, 24), Int8Weight(*quantize(normal(outputs, 24, seed=1)))
    whole, scale = (np.asarray(a) for a in quantize(x))
    sums = (whole.astype(np.int32) @ np.asarray(w.int8, np.int32).T).astype(np.float32)
    computed = np.asarray(jax.jit(linear)(x, w))
    np.testing.assert_array_equal(computed, sums * np.asarray(w.scale)[:, 0] * scale)


@pytest.mark.parametrize("count", [2, 64])
def test_forward_mode_and_second_derivatives(count):
    x, w = normal(count, 12), normal(6, 12, seed=1)
    dx, dw = normal(count, 12, seed=2), normal(6, 12, seed=3)
    y, moved = jax.jit(lambda *at: jax.jvp(linear, at, (dx, dw)))(x, w)
    plain_y, plain_moved = jax.jit(lambda x, w: (x @ w.T, dx @ w.T + x @ dw.T))(x, w)
    assert_close(y, plain_y)
    assert_close(moved, plain_moved)

    def squares(product):
        once = jax.grad(lambda x: jnp.sum(product(x) ** 2))
        return jax.jit(jax.grad(lambda x: jnp.sum(once(x) ** 2)))

    assert_close(squares(lambda x: linear(x, w))(x), squares(lambda x: x @ w.T)(x), 1e-4)


def test_a_frozen_weight_under_thin_matrices():
    x, base, a, b = normal(5, 8), normal(6, 8, seed=1), normal(2, 8, seed=2), normal(6, 2, seed=3)

    def ours(a, b):
        return jnp.sum(linear(x, LoraWeight(base, (a,), (b,), 0.5)) ** 2)

    def plain(a, b):
        return jnp.sum((x @ (base + 0.5 * b @ a).T) ** 2)

    for got, wanted in zip(
        jax.jit(jax.grad(ours, (0, 1)))(a, b), jax.jit(jax.grad(plain, (0, 1)))(a, b), strict=True
    ):
        assert_close(got, wanted, 1e-4)


@pytest.mark.parametrize("count", [1, 4, 70])
def test_rounded_weights_let_what_is_not_rounded_learn(count):
    """Rounding has no derivative; the bias behind it has."""
    x, weight = normal(count, 24), Int8Weight(*quantize(normal(10, 24, seed=1)))
    by_bias = jax.jit(jax.grad(lambda bias: jnp.sum(linear(x, weight, bias))))(jnp.zeros(10))
    np.testing.assert_array_equal(by_bias, np.full(10, count, np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("reduce", [jnp.mean, jnp.max, jnp.sum])
def test_rows_that_a_reduction_made(reduce, dtype):
    """XLA on CPU once fused the reduction with the product and gave NaN."""
    layer = Linear(256, 64, param_dtype=dtype, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(4, 9, 256)).astype(np.float32)
    got = jax.jit(lambda layer, x: layer(reduce(x, axis=1)))(layer, x)
    apart = layer(jnp.asarray(reduce(jnp.asarray(x), axis=1)))
    assert_close(got, apart, 1e-5)
