"""The linear layers of the metrics' networks, as ordinary products."""

import jax
import jax.numpy as jnp

from musicgen_jax.nn.linear import Linear


def dense(layer: Linear, x: jax.Array) -> jax.Array:
    """`[..., I]` to `[..., O]`, in the dtype of `x`.

    Not `linear`: its halved product once gave NaN behind a mean, in XLA's CPU compiler of jax 0.10.
    `linear` avoids that now, but the parity of these networks was shown with this product.
    """
    y = jnp.einsum("...i,oi->...o", x, layer.weight[...].astype(x.dtype))  # type: ignore[union-attr]
    return y if layer.bias is None else y + layer.bias[...].astype(x.dtype)
