"""The linear layers of the metrics' networks, as ordinary products."""

import jax
import jax.numpy as jnp

from musicgen_jax.nn.linear import Linear


def dense(layer: Linear, x: jax.Array) -> jax.Array:
    """`[..., I]` to `[..., O]`, in the dtype of `x`.

    Not `linear`, whose halved product XLA's CPU compiler (jax 0.10) puts into one fusion with a
    mean in front of it: for four rows or more of 1024 numbers the result is NaN.
    """
    y = jnp.einsum("...i,oi->...o", x, layer.weight[...].astype(x.dtype))  # type: ignore[union-attr]
    return y if layer.bias is None else y + layer.bias[...].astype(x.dtype)
