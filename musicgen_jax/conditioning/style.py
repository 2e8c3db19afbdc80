"""Style as a condition: how a short excerpt of music sounds, in a few coarse tokens.

The way of MusicGen-Style (arxiv.org/abs/2407.12563): MERT hears three seconds, a transformer looks
over its features, a quantizer keeps only what `eval_q` codebooks can say of them, and every 15th
frame becomes a token in front of the music.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import StyleConfig
from musicgen_jax.encodec.quantizer import ResidualVectorQuantizer
from musicgen_jax.linear import Linear
from musicgen_jax.transformer import Transformer, sinusoidal_positions

DEFAULT_EVAL_Q = 3
DEFAULT_EXCERPT = 3.0  # seconds; the model was trained on excerpts of 1.5 to 4.5
_EXCERPT_STREAM = 0x7374796C  # "styl": beyond every step and window that keys are folded with


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


def excerpt(
    clip: np.ndarray, length: int, key: jax.Array, *, offset: int = 0, window: int | None = None
) -> np.ndarray:
    """The part of a clip that stands for its style, at a place that the key draws.

    For a window of a piece longer than the model's own, the clip is first turned into that window
    as audiocraft does: repeated without end, from `offset` on, `window` samples. Each window draws
    its own place.

    Args:
      clip: float [W], W at least `length`.
      length: samples of the excerpt.
      key: of the example; what it draws here is of no other use of the key.
      offset: samples of the piece before the window.
      window: samples of the window, None for the clip as it is.

    Returns:
      float [length].
    """
    key = jax.random.fold_in(key, _EXCERPT_STREAM)
    if window is None:
        span, first = len(clip) - length, 0
    else:
        key, span, first = jax.random.fold_in(key, offset), max(window - length, 0), offset
    start = first + int(jax.random.randint(key, (), 0, span + 1))
    if start + length <= len(clip):
        return clip[start : start + length]
    return clip[np.arange(start, start + length) % len(clip)]
