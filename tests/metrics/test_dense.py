"""The linear layers of the metrics' networks, where a compiler once gave NaN."""

import jax
import numpy as np
import pytest
from flax import nnx

from musicgen_jax.metrics.dense import dense
from musicgen_jax.nn.linear import Linear
from tests.helpers.tolerance import assert_close


@pytest.mark.parametrize("rows", [1, 4, 5, 8, 32])
def test_a_layer_behind_a_mean(rows):
    layer = Linear(1024, 512, use_bias=True, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(rows, 64, 1024)).astype(np.float32)
    got = jax.jit(lambda layer, x: dense(layer, x.mean(1)))(layer, x)
    weight = np.asarray(layer.weight[...], np.float64)  # type: ignore[union-attr]
    assert_close(got, x.astype(np.float64).mean(1) @ weight.T, 1e-5)
