"""The decoder-only transformer: pre-norm blocks, optional cross-attention, explicit caches.

It does not know about codebooks or text: it maps rows of vectors to rows of vectors.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.nn.attention import LayerCache, attend, in_groups, write
from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.folded_cross import fold
from musicgen_jax.nn.linear import Linear, fan_in_normal, fan_in_uniform, linear
from musicgen_jax.nn.weights import Int8Weight, LoraWeight, float_dtype
from musicgen_jax.runtime.memory import nbytes


class Cross(Protocol):
    """A source of cross-attention, prepared once for all steps of a generation.

    It is a pytree of arrays. The first axis of `k` and `v` is the source's rows, C.
    """

    @property
    def k(self) -> jax.Array:
        """Keys."""
        ...

    @property
    def v(self) -> jax.Array:
        """Values."""
        ...

    def read(self, attention: "Attention", x: jax.Array, mask: jax.Array) -> jax.Array:
        """Attends from `[C, S, D]` to the source, with bool mask `[C, 1, 1, L]`: `[C, S, D]`."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossCache:
    """The keys and values of a source, and the weight of the queries.

    The query weight is sliced out of the fused weight in advance: inside the decode loop the slice
    would be copied at every step.
    """

    query: jax.Array | Int8Weight | LoraWeight  # [D, D]
    k: jax.Array  # [B, G, L, D / G]
    v: jax.Array  # [B, G, L, D / G]

    def read(self, attention: "Attention", x: jax.Array, mask: jax.Array) -> jax.Array:
        """See `Cross`."""
        q = attention.split_heads(linear(x, self.query))
        return attention.output(q, self, mask)


def sinusoidal_positions(positions: jax.Array, dim: int) -> jax.Array:
    """Position vectors, with all cosines before all sines.

    The phase is `position / 10000 ** (i / (dim / 2 - 1))`, with the power computed in float32, as
    in audiocraft (`create_sin_embedding`). Dividing by `dim / 2 - 1` makes the last divisor exactly
    10000.

    Args:
      positions: integers `[...]`.
      dim: D, even.

    Returns:
      float32 `[..., D]`.
    """
    half = dim // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(max(half - 1, 1))
    period = np.power(np.float32(10000), exponent)
    number = positions[..., None].astype(jnp.float32)
    phase = number / aligned(period, number)
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias, eps 1e-5, all in float32, since it has few parameters."""

    def __init__(self, dim: int, *, dtype: DTypeLike, param_dtype: DTypeLike):
        self.dtype = jnp.dtype(dtype)
        # Narrower parameters would be widened at every step, each by a separate kernel.
        wide = jnp.promote_types(float_dtype(param_dtype), jnp.float32)
        self.scale = nnx.Param(jnp.ones(dim, wide))
        self.bias = nnx.Param(jnp.zeros(dim, wide))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` to `[..., D]`."""
        x = x.astype(jnp.float32)
        # Two passes, not E[x^2] - E[x]^2, which loses digits when the mean is large.
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
        y = x * aligned(self.scale[...], x) + aligned(self.bias[...], x)
        return y.astype(self.dtype)


class Attention(nnx.Module):
    """Multi-head attention without biases; queries, keys and values share one weight.

    The weight is `[3 D, D]`, or `[3, D, D]` if the heads are split over several devices, see
    `sharding.arrange`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        out_init: nnx.Initializer,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        make = partial(Linear, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.num_heads = num_heads
        self.dtype = jnp.dtype(dtype)
        self.in_proj = make(dim, 3 * dim, kernel_init=fan_in_uniform())  # q | k | v
        self.out_proj = make(dim, dim, kernel_init=out_init)

    def qkv(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of `[B, S, D]`, each `[B, N, S, H]`."""
        qkv = self.in_proj(x).reshape(*x.shape[:2], 3, -1)
        q, k, v = (self.split_heads(qkv[:, :, i]) for i in range(3))
        return q, k, v

    def cross_cache(
        self,
        source: jax.Array,
        dtype: DTypeLike,
        groups: int | None = None,
        *,
        fold_weights: bool = False,
    ) -> Cross:
        """Prepares cross-attention to `[B, L, D]`.

        Args:
          source: the vectors to attend to.
          dtype: dtype of the keys and values.
          groups: G, the number of blocks that hold them (default: one per head).
          fold_weights: whether to fold the weights into a short source, if this saves reads.
        """
        # This computes the queries as well and drops them: slicing out the other two thirds would
        # copy the weight.
        k, v = self.qkv(source)[1:]
        weight, out = self.in_proj.weight[...], self.out_proj.weight[...]
        query = weight[: weight.shape[0] // 3]
        if fold_weights and not (isinstance(query, LoraWeight) or isinstance(out, LoraWeight)):
            folded = partial(fold, k, v, weight, out, dtype)
            if nbytes(jax.eval_shape(folded)) < nbytes((query, out)):
                return folded()
        k, v = (in_groups(x.astype(dtype), groups or self.num_heads) for x in (k, v))
        return CrossCache(query, k, v)

    def output(self, q: jax.Array, kv: LayerCache | CrossCache, mask: jax.Array) -> jax.Array:
        """Attends and projects: `[B, N, S, H]` to `[B, S, D]`."""
        y = attend(q, kv.k, kv.v, mask)  # [B, N, S, H]
        return self.out_proj(y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1))

    def split_heads(self, x: jax.Array) -> jax.Array:
        """`[B, S, D]` to `[B, N, S, H]`."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)


def _gelu(x: jax.Array) -> jax.Array:
    """GELU with erf, as in torch; `jax.nn.gelu` uses erfc, which compiles to more kernels."""
    return x * 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


class Block(nnx.Module):
    """`x += self-attention; x += cross-attention (if enabled); x += feed-forward`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        *,
        cross_attention: bool,
        depth: int,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        # audiocraft's `depthwise_init="current"`: the residuals shrink with depth.
        init = fan_in_normal(1 / (2 * depth))
        types: Any = {"dtype": dtype, "param_dtype": param_dtype}
        self.norm1 = LayerNorm(dim, **types)
        self.self_attn = Attention(dim, num_heads, out_init=init, **types, rngs=rngs)
        if cross_attention:
            self.norm_cross = LayerNorm(dim, **types)
            self.cross_attention = Attention(dim, num_heads, out_init=init, **types, rngs=rngs)
        self.norm2 = LayerNorm(dim, **types)
        self.linear1 = Linear(dim, ffn_dim, kernel_init=init, **types, rngs=rngs)
        self.linear2 = Linear(ffn_dim, dim, kernel_init=init, **types, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        cross: Cross | jax.Array | None,
        cross_mask: jax.Array | None,
        cache: LayerCache | None,
        slot: jax.Array | int,
    ) -> tuple[jax.Array, LayerCache | None]:
        """See `Transformer.__call__`; `cross` can also be the second sequence itself."""
        q, k, v = self.self_attn.qkv(self.norm1(x))
        if cache is None:
            kv = LayerCache(k, v)
        else:
            k, v = (in_groups(x, cache.k.shape[1]) for x in (k, v))
            kv = cache = LayerCache(write(cache.k, k, slot), write(cache.v, v, slot))
        x = x + self.self_attn.output(q, kv, mask)
        if cross is not None and cross_mask is not None:
            if isinstance(cross, jax.Array):
                cross = self.cross_attention.cross_cache(cross, cross.dtype)
            x = x + self._cross_attend(x, cross, cross_mask)
        hidden = _gelu(self.linear1(self.norm2(x)))
        return x + self.linear2(hidden), cache

    def _cross_attend(self, x: jax.Array, cross: Cross, mask: jax.Array) -> jax.Array:
        """The cross-attention residual for `[B, S, D]`; zeros in rows without a source."""
        runs = self.norm_cross(x).reshape(cross.k.shape[0], -1, *x.shape[1:])  # [C, B / C, S, D]
        first = runs[:, 0].astype(self.cross_attention.dtype)
        residual = cross.read(self.cross_attention, first, mask)[:, None]
        others = ((0, 0), (0, runs.shape[1] - 1), (0, 0), (0, 0))
        return jnp.pad(residual, others).reshape(x.shape)


WrapBlock = Callable[[Block], Callable[..., tuple[jax.Array, LayerCache | None]]]


class Transformer(nnx.Module):
    """A stack of blocks, unrolled: each layer owns its weights and its cache.

    Training sets `wrap_block`, which takes a block and returns the function to call instead of it.
    Such a function recomputes the block in the backward pass, or first gathers its weights from
    many devices.

    Args:
      dim: D, the width.
      num_heads: N, the number of attention heads.
      num_layers: number of blocks.
      ffn_dim: F, the width of the feed-forward.
      cross_attention: whether every block attends to a second sequence.
      dtype: dtype of the computation.
      param_dtype: dtype of the stored parameters.
      rngs: random streams; uses `params`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_layers: int,
        ffn_dim: int,
        *,
        cross_attention: bool,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.wrap_block: WrapBlock | None = None
        self.layers = nnx.List(
            [
                Block(
                    dim,
                    num_heads,
                    ffn_dim,
                    cross_attention=cross_attention,
                    depth=i + 1,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    rngs=rngs,
                )
                for i in range(num_layers)
            ]
        )

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        cross: tuple[Cross, ...] | jax.Array | None = None,
        cross_mask: jax.Array | None = None,
        cache: tuple[LayerCache, ...] | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple[LayerCache, ...] | None]:
        """Runs every block.

        Args:
          x: `[B, S, D]`, positions already added.
          mask: bool `[B or 1, S, T]`; T is S, or the length of the cache if there is a cache.
          cross: result of `cross_kv`, one per layer; or the second sequence itself, `[C, L, D]`; or
            None. C must divide B. The first of every B / C rows attends to the second sequence; the
            other rows have no cross-attention.
          cross_mask: bool `[C, L]`, False for padding.
          cache: keys and values of the earlier positions, one per layer. The keys and values of `x`
            are written at `slot`, and `x` attends to the whole cache under `mask`.
          slot: slot of the cache where `x` begins: one number, or int32 `[B]` if S is 1.

        Returns:
          `[B, S, D]`, and the new caches (None without `cache`).
        """
        mask = mask[:, None]
        if cross_mask is not None:
            cross_mask = cross_mask[:, None, None, :]
        caches = []
        for i, layer in enumerate(self.layers):
            block = layer if self.wrap_block is None else self.wrap_block(layer)
            x, layer_cache = block(
                x,
                mask,
                cross[i] if isinstance(cross, tuple) else cross,
                cross_mask,
                None if cache is None else cache[i],
                slot,
            )
            caches.append(layer_cache)
        return x, None if cache is None else tuple(caches)

    def cross_kv(
        self,
        source: jax.Array,
        dtype: DTypeLike | None = None,
        groups: int | None = None,
        *,
        fold: bool = False,
    ) -> tuple[Cross, ...]:
        """Prepares the cross-attention of every layer to `[B, L, D]`.

        Args:
          source: the second sequence.
          dtype: dtype of the keys and values (default: the dtype of `source`).
          groups: number of blocks that hold them (default: one per head).
          fold: whether to fold the weights into a short sequence.
        """
        dtype = dtype or source.dtype
        return tuple(
            layer.cross_attention.cross_cache(source, dtype, groups, fold_weights=fold)
            for layer in self.layers
        )
