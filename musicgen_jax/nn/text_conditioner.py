"""Text as a condition: projects the text encoder's width to the language model's."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.nn.linear import Linear


class TextConditioner(nnx.Module):
    """Projects the hidden states of a text encoder to the width of the language model."""

    def __init__(
        self,
        text_dim: int,
        dim: int,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.output_proj = Linear(
            text_dim, dim, use_bias=True, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """Projects the hidden states, then zeroes the masked positions.

        The mask is applied after the projection, as in audiocraft: zeros before the projection
        would leave the bias. It uses `where`, because a product would keep a NaN at a masked
        position.

        Args:
          hidden: [B, L, E], the output of the text encoder.
          mask: [B, L] bool or int, nonzero where there is text.

        Returns:
          [B, L, D] in the compute dtype, exactly zero at masked positions.
        """
        projected = self.output_proj(hidden)
        return jnp.where(mask[..., None].astype(bool), projected, jnp.zeros((), projected.dtype))
