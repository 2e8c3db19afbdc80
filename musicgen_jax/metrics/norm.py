"""The layer norm of the metrics' transformers, which differ in its epsilon, and their GELU."""

import jax
import jax.numpy as jnp
from flax import nnx

from musicgen_jax.nn.axes import aligned


class Norm(nnx.Module):
    """Layer norm with its own epsilon, float32.

    Args:
      dim: D.
      epsilon: added to the variance.
    """

    def __init__(self, dim: int, epsilon: float):
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(dim)), nnx.Param(jnp.zeros(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` to `[..., D]`."""
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return x * aligned(self.scale[...], x) + aligned(self.bias[...], x)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, by erf as in torch; `jax.nn.gelu` takes erfc, which is slower on a CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))
