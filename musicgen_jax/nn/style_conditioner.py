"""Style as a condition: how a short excerpt of music sounds, in a few coarse tokens.

The way of MusicGen-Style (arxiv.org/abs/2407.12563): MERT hears three seconds, a transformer looks
over its features, a quantizer keeps only what `eval_q` codebooks can say of them, and every 15th
frame becomes a token in front of the music.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import StyleConfig
from musicgen_jax.nn.encodec.quantizer import ResidualVectorQuantizer
from musicgen_jax.nn.linear import Linear
from musicgen_jax.nn.transformer import Transformer, sinusoidal_positions

DEFAULT_EVAL_Q = 3


class BatchNorm(nnx.Module):
    """What batch norm without learned parameters is after training: a shift and a scale.

    `scale` is 1 / sqrt(running variance + 1e-5), folded at conversion.
    """

    def __init__(self, dim: int, *, param_dtype: DTypeLike):
        self.mean = nnx.Param(jnp.zeros(dim, param_dtype))
        self.scale = nnx.Param(jnp.ones(dim, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` to float32 `[..., D]`."""
        mean, scale = (part[...].astype(jnp.float32) for part in (self.mean, self.scale))
        return (x.astype(jnp.float32) - mean) * scale


class StyleConditioner(nnx.Module):
    """Features of an excerpt to vectors in front of the tokens of the language model.

    Args:
      config: sizes.
      output_dim: D, of the language model.
      dtype: of the computation. Float32 beside a language model of any dtype: a rounded distance
        picks another code.
      param_dtype: of the stored parameters.
      rngs: stream `params` is used.
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
        """What is left of an excerpt: `[B, T, E]` to codes int32 `[B, eval_q, P]`.

        Args:
          features: of MERT.
          eval_q: codebooks to use, 1 to `config.n_q`: the fewer, the freer the music.
        """
        x = self.embed(features)
        frames = x.shape[1]
        positions = sinusoidal_positions(jnp.arange(frames), self.config.dim)
        x, _ = self.transformer(x + positions.astype(x.dtype), jnp.ones((1, frames, frames), bool))
        # The original quantizes every frame and drops most: the same, since frames are separate.
        x = self.batch_norm(x[:, :: self.config.ds_factor])
        return self.rvq.encode(x, eval_q)

    def __call__(self, features: jax.Array, eval_q: int = DEFAULT_EVAL_Q) -> jax.Array:
        """`[B, T, E]` to `[B, P, D]`, P being T / `config.ds_factor`, rounded up."""
        return self.tokens(self.encode(features, eval_q))

    def tokens(self, codes: jax.Array) -> jax.Array:
        """What stands for codes of `encode`: int `[B, K, P]` to `[B, P, D]`.

        -1 stands for a codebook that is not used, see `ResidualVectorQuantizer.decode`.
        """
        return self.output_proj(self.rvq.decode(codes))
