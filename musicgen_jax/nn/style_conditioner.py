"""Style as a condition: the sound of a short excerpt of music, as a few coarse tokens.

This is the method of MusicGen-Style (arxiv.org/abs/2407.12563). MERT computes features of three
seconds of audio and a transformer processes them. A quantizer with `eval_q` codebooks discards most
of the detail. Every 15th frame becomes a token before the music.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import StyleConfig
from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.encodec.quantizer import ResidualVectorQuantizer
from musicgen_jax.nn.linear import Linear
from musicgen_jax.nn.transformer import Transformer, sinusoidal_positions

DEFAULT_EVAL_Q = 3


class BatchNorm(nnx.Module):
    """Batch norm without learned parameters, at inference: a shift and a scale.

    `scale` is 1 / sqrt(running variance + 1e-5), folded at conversion.
    """

    def __init__(self, dim: int, *, param_dtype: DTypeLike):
        self.mean = nnx.Param(jnp.zeros(dim, param_dtype))
        self.scale = nnx.Param(jnp.ones(dim, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` to float32 `[..., D]`."""
        mean, scale = (
            aligned(part[...].astype(jnp.float32), x) for part in (self.mean, self.scale)
        )
        return (x.astype(jnp.float32) - mean) * scale


class StyleConditioner(nnx.Module):
    """Turns features of an excerpt into vectors that prefix the language model's tokens.

    Args:
      config: sizes.
      output_dim: D, the width of the language model.
      dtype: dtype of the computation. Keep float32 whatever the language model's dtype: a rounded
        distance can select a different code.
      param_dtype: dtype of the stored parameters.
      rngs: random streams; uses `params`.
    """

    def __init__(
        self,
        config: StyleConfig,
        output_dim: int,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: Any = {"dtype": dtype, "param_dtype": param_dtype}
        dim = config.dim
        self.config = config
        self.embed = Linear(config.feature_dim, dim, use_bias=True, **types, rngs=rngs)
        self.transformer = Transformer(
            dim,
            config.num_heads,
            config.num_layers,
            config.ffn_dim,
            cross_attention=False,
            **types,
            rngs=rngs,
        )
        self.batch_norm = BatchNorm(dim, param_dtype=param_dtype)
        self.rvq = ResidualVectorQuantizer(
            config.n_q, config.bins, dim, param_dtype=param_dtype, rngs=rngs
        )
        self.output_proj = Linear(dim, output_dim, use_bias=True, **types, rngs=rngs)

    def encode(self, features: jax.Array, eval_q: int = DEFAULT_EVAL_Q) -> jax.Array:
        """Quantizes an excerpt: features `[B, T, E]` to codes, int32 `[B, eval_q, P]`.

        Args:
          features: MERT's features.
          eval_q: number of codebooks to use, from 1 to `config.n_q`. With fewer codebooks the
            music follows the excerpt less closely.
        """
        x = self.embed(features)
        frames = x.shape[1]
        positions = sinusoidal_positions(jnp.arange(frames), self.config.dim)
        x, _ = self.transformer(
            x + positions[None].astype(x.dtype), jnp.ones((1, frames, frames), bool)
        )
        # The original quantizes every frame and drops most. The result is the same, since each
        # frame is quantized separately.
        x = self.batch_norm(x[:, :: self.config.ds_factor])
        return self.rvq.encode(x, eval_q)

    def __call__(self, features: jax.Array, eval_q: int = DEFAULT_EVAL_Q) -> jax.Array:
        """`[B, T, E]` to `[B, P, D]`, where P is T / `config.ds_factor`, rounded up."""
        return self.tokens(self.encode(features, eval_q))

    def tokens(self, codes: jax.Array) -> jax.Array:
        """The language model's vectors for codes of `encode`: int `[B, K, P]` to `[B, P, D]`.

        A code of -1 means that the codebook is not used, see `ResidualVectorQuantizer.decode`.
        """
        return self.output_proj(self.rvq.decode(codes))
