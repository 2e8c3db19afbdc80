"""A chromagram as a condition: one token per frame."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.nn.linear import Linear

# The bin of silence, and so of "no melody": all bins are equal then, and the first (C) wins.
SILENCE = 0


class ChromaConditioner(nnx.Module):
    """Projects a chromagram to the width of the language model: one token per frame."""

    def __init__(
        self,
        num_chroma: int,
        dim: int,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_chroma = num_chroma
        self.output_proj = Linear(
            num_chroma, dim, use_bias=True, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, chroma: jax.Array) -> jax.Array:
        """[B, T, num_chroma] to [B, T, D]."""
        return self.output_proj(chroma)

    def null(self, num_frames: int) -> jax.Array:
        """The vectors of "no melody", [T, D]: the melody of silence, not zeros."""
        silence = jax.nn.one_hot(SILENCE, self.num_chroma)
        return jnp.broadcast_to(self(silence), (num_frames, self.output_proj.weight.shape[0]))
