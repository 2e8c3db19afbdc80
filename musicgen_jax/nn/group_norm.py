"""The norm that convolutional networks share."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.nn.axes import aligned


class GroupNorm(nnx.Module):
    """Norm over some axes together, eps 1e-5, with statistics in float32.

    With the channels among the axes it is torch's `GroupNorm` of one group; without them, of one
    group per channel.
    """

    def __init__(
        self, channels: int, axes: tuple[int, ...], *, dtype: DTypeLike, param_dtype: DTypeLike
    ):
        self.axes, self.dtype = axes, jnp.dtype(dtype)
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., C]` to `[..., C]`."""
        x = x.astype(jnp.float32)
        x = x - x.mean(self.axes, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(self.axes, keepdims=True) + 1e-5)
        scale, bias = (aligned(p[...].astype(jnp.float32), x) for p in (self.scale, self.bias))
        y = x * scale + bias
        return y.astype(self.dtype)
