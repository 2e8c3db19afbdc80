"""The transformer between encoders and decoders: two streams that attend to each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicgen_jax.config import HTDemucsConfig
from musicgen_jax.nn.group_norm import GroupNorm
from musicgen_jax.nn.htdemucs.layers import LayerScale, gelu
from musicgen_jax.nn.linear import Linear, linear
from musicgen_jax.nn.transformer import LayerNorm, attend, sinusoidal_positions

_MAX_PERIOD = 10000.0


def positions_2d(frames: int, bins: int, dim: int) -> jax.Array:
    """Position vectors of a grid: half of each vector encodes the frame, half the bin.

    Sines and cosines alternate within each half, unlike in the vectors of the time branch.

    Args:
      frames: T.
      bins: F.
      dim: D, a multiple of 4.

    Returns:
      float32 `[T, F, D]`.
    """
    half = dim // 2
    rate = np.exp(np.arange(0, half, 2) * (-math.log(_MAX_PERIOD) / half))

    def alternate(count: int) -> np.ndarray:
        phase = np.arange(count)[:, None] * rate
        waves = np.stack([np.sin(phase), np.cos(phase)], axis=-1)  # [count, half / 2, 2]
        return waves.reshape(count, half).astype(np.float32)

    shape = (frames, bins, half)
    times = jnp.broadcast_to(alternate(frames)[:, None], shape)
    return jnp.concatenate([times, jnp.broadcast_to(alternate(bins), shape)], axis=-1)


class Attention(nnx.Module):
    """Multi-head attention with biases; queries, keys and values share one weight."""

    def __init__(self, dim: int, num_heads: int, **kwargs):
        self.num_heads = num_heads
        self.in_proj = Linear(dim, 3 * dim, use_bias=True, **kwargs)
        self.out_proj = Linear(dim, dim, use_bias=True, **kwargs)

    def __call__(self, x: jax.Array, source: jax.Array) -> jax.Array:
        """Attends from `x` [B, S, D] to `source` [B, T, D]."""
        if source is x:
            q, k, v = jnp.split(self.in_proj(x), 3, axis=-1)
        else:
            q, k, v = self._part(x, 0), self._part(source, 1), self._part(source, 2)
        q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)
        y = attend(q, k, v, jnp.ones((), bool))
        return self.out_proj(y.swapaxes(1, 2).reshape(x.shape))

    def _part(self, x: jax.Array, index: int) -> jax.Array:
        """Only the queries, keys or values."""
        rows = slice(index * x.shape[-1], (index + 1) * x.shape[-1])
        assert self.in_proj.bias is not None
        return linear(x, self.in_proj.weight[...][rows], self.in_proj.bias[...][rows])

    def _split_heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)


class Layer(nnx.Module):
    """Pre-norm attention and feed-forward, then a norm over time and channels together.

    Args:
      config: model sizes.
      cross: whether the layer attends to the other stream instead of its own. If so, as in demucs,
        `norm2` normalises the other stream and `norm3` belongs to the feed-forward.
      kwargs: dtype, param_dtype, rngs.
    """

    def __init__(self, config: HTDemucsConfig, *, cross: bool, **kwargs):
        dim = config.dim
        hidden = int(dim * config.t_hidden_scale)
        types = {"dtype": kwargs["dtype"], "param_dtype": kwargs["param_dtype"]}
        self.attn = Attention(dim, config.t_heads, **kwargs)
        self.linear1 = Linear(dim, hidden, use_bias=True, **kwargs)
        self.linear2 = Linear(hidden, dim, use_bias=True, **kwargs)
        self.norm1 = LayerNorm(dim, **types)
        self.norm2 = LayerNorm(dim, **types)
        self.norm3 = LayerNorm(dim, **types) if cross else None
        self.norm_out = GroupNorm(dim, (1, 2), **types)
        self.gamma_1 = LayerScale(dim, 1e-4, param_dtype=types["param_dtype"])
        self.gamma_2 = LayerScale(dim, 1e-4, param_dtype=types["param_dtype"])

    def __call__(self, x: jax.Array, other: jax.Array) -> jax.Array:
        """`x` [B, S, D], the other stream [B, T, D]."""
        query = self.norm1(x)
        source = query if self.norm3 is None else self.norm2(other)
        x = x + self.gamma_1(self.attn(query, source))
        normed = self.norm2(x) if self.norm3 is None else self.norm3(x)
        x = x + self.gamma_2(self.linear2(gelu(self.linear1(normed))))
        return self.norm_out(x)


class CrossTransformer(nnx.Module):
    """Alternating layers of self-attention and of cross-attention between the streams."""

    def __init__(self, config: HTDemucsConfig, **kwargs):
        types = {"dtype": kwargs["dtype"], "param_dtype": kwargs["param_dtype"]}
        self.weight_pos_embed = config.t_weight_pos_embed
        self.norm_in = LayerNorm(config.dim, **types)
        self.norm_in_t = LayerNorm(config.dim, **types)

        def layers() -> nnx.List:
            cross = [(i % 2 == 0) == config.t_cross_first for i in range(config.t_layers)]
            return nnx.List([Layer(config, cross=each, **kwargs) for each in cross])

        self.layers, self.layers_t = layers(), layers()

    def __call__(self, x: jax.Array, xt: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Spectrogram [B, T, F, D] and waveform [B, W, D] to the same shapes."""
        shape = x.shape
        x = self.norm_in(x) + self.weight_pos_embed * positions_2d(*shape[1:])[None]
        x = x.reshape(shape[0], -1, shape[-1])  # [B, T F, D]
        positions = sinusoidal_positions(jnp.arange(xt.shape[1]), xt.shape[-1])
        xt = self.norm_in_t(xt) + self.weight_pos_embed * positions[None]
        for layer, layer_t in zip(self.layers, self.layers_t, strict=True):
            x, xt = layer(x, xt), layer_t(xt, x)
        return x.reshape(shape), xt
