"""Winograd's algorithm computes the convolution, in both directions and at the edges."""

import jax.numpy as jnp
import numpy as np
import pytest

from musicgen_jax.metrics import winograd
from tests.helpers.tolerance import assert_close


def convolved(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The convolution in float64, by its definition."""
    T, F = x.shape[1:3]
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((*x.shape[:3], weight.shape[-1]))
    for i, j in np.ndindex(3, 3):
        y += padded[:, i : i + T, j : j + F] @ weight[i, j].astype(np.float64)
    return y


@pytest.mark.parametrize("shape", [(1, 4, 4, 1, 1), (2, 8, 12, 3, 5), (3, 12, 8, 64, 32)])
def test_it_is_the_convolution(shape):
    B, T, F, I, O = shape
    rng = np.random.default_rng(0)
    x = rng.normal(1, 1, (B, T, F, I)).astype(np.float32)
    weight = rng.normal(0, (9 * I) ** -0.5, (3, 3, I, O)).astype(np.float32)
    found = winograd.convolve(jnp.asarray(x), winograd.kernels(jnp.asarray(weight)))
    assert found.dtype == jnp.float32
    assert_close(found, convolved(x, weight), 5e-6)
