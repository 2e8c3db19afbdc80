"""The decoder-only transformer: pre-norm blocks, optional cross-attention, explicit caches.

It knows nothing of codebooks or text: rows of vectors come in, rows of vectors go out.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.nn.linear import (
    Int8Weight,
    Linear,
    LoraWeight,
    columns,
    fan_in_normal,
    fan_in_uniform,
    float_dtype,
    linear,
    rows,
)
from musicgen_jax.runtime.memory import nbytes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one attention: G groups of heads, each a block of its own.

    In a group N / G heads lie side by side; see `cache_groups`.
    """

    k: jax.Array  # [B, G, S, D / G]
    v: jax.Array  # [B, G, S, D / G]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossCache:
    """What a cross-attention needs of a source that stays the same from step to step.

    The queries' weight is among it, cut out of the fused one: cut inside the decode loop it would
    be copied at every step.
    """

    query: jax.Array | Int8Weight | LoraWeight  # [D, D]
    k: jax.Array  # [B, G, L, D / G]
    v: jax.Array  # [B, G, L, D / G]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FoldedCross:
    """A `CrossCache` of a short source, with the weights of queries and output folded into it.

    A score is `(Wq x) . k`, which is `x . (Wq' k)`, and the result a sum of `Wo v`: what is in
    brackets last stays the same from step to step. So N L vectors are read in place of two weights.
    """

    k: jax.Array  # [B, N L, D], already divided by the root of H
    v: jax.Array  # [B, D, N L]


def cache_dtype(dtype: DTypeLike) -> DTypeLike:
    """What keys and values are kept in beside a computation in `dtype`.

    On a CPU always float32: XLA would widen a bfloat16 cache, all of it, to write one step into it,
    and narrow it again.
    """
    return jnp.float32 if jax.default_backend() == "cpu" else dtype


def cache_groups(num_heads: int, devices: int = 1) -> int:
    """G, how many blocks the keys and values of `num_heads` heads are kept in.

    A block per head, so that each reads one stretch of memory; but on a TPU a block per device. Its
    vectors have 128 lanes: a head of 64 would fill half of them, in memory and in every read. The
    compiler for a TPU reckons with more than twice the cycles for a step of the small model, and
    with a second cache for changing the layout (`benchmarks/tpu_compile.py`).

    Args:
      num_heads: N.
      devices: over which heads are spread.
    """
    if jax.default_backend() != "tpu":
        return num_heads
    return devices if num_heads % devices == 0 else 1


def lean_cross(param_dtype: DTypeLike) -> bool:
    """Whether cross-attention leaves out null rows, and weights are folded into a short source.

    Both leave a product of a single row. The compiler for a TPU reckons with a sixth more cycles
    for such a step of the small model (`benchmarks/tpu_compile.py`): there two rows stay two. And a
    CPU would widen the whole of a bfloat16 weight to fold it.
    """
    backend, size = jax.default_backend(), jnp.dtype(param_dtype).itemsize
    return backend != "tpu" and not (backend == "cpu" and size == 2)


def sinusoidal_positions(positions: jax.Array, dim: int) -> jax.Array:
    """Position vectors, all cosines before all sines.

    The phase is `position / 10000 ** (i / (dim / 2 - 1))`, the power taken in float32, as in
    audiocraft (`create_sin_embedding`): half minus one, so the last period is exactly 10000.

    Args:
      positions: integers `[...]`.
      dim: D, even.

    Returns:
      float32 `[..., D]`.
    """
    half = dim // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(max(half - 1, 1))
    period = np.power(np.float32(10000), exponent)
    phase = positions[..., None].astype(jnp.float32) / period
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention; a query that may look at nothing gives exact zeros.

    Args:
      q: `[B, N, S, H]`.
      k: `[B, N, T, H]`, or `[B, G, T, N / G * H]` with heads side by side.
      v: as `k`.
      mask: bool, broadcasts to `[B, N, S, T]`, alike for all heads; True where a query may look.

    Returns:
      `[B, N, S, H]` in the dtype of `q`. Scores and softmax are float32.
    """
    if k.dtype.itemsize == 1:  # eight bits are for keeping, not for computing
        k, v = k.astype(q.dtype), v.astype(q.dtype)
    if k.shape[1] != q.shape[1]:
        return _attend_in_groups(q, k, v, mask)
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("bnsh,bnth->bnst", q * scale, k, preferred_element_type=jnp.float32)
    weights = _softmax(scores, mask)
    out = jnp.einsum(
        "bnst,bnth->bnsh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return out.astype(q.dtype)


def _softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Over the last axis where the mask is True; zeros where it is not."""
    # A finite floor instead of -inf: a row with nothing to see stays free of NaN, also backwards.
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0)


def _attend_in_groups(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`attend` over heads that lie side by side, by products that are wide enough for a TPU.

    To each head the others' keys are multiplied by zeros, and of what it reads of their values only
    its own part is kept. That is N / G times the arithmetic, in decoding still next to none.
    """
    B, N, S, H = q.shape
    G = k.shape[1]
    own = jnp.eye(N // G, dtype=q.dtype)
    q = q.reshape(B, G, N // G, S, H)
    wide = jnp.einsum("bgmsh,mn->bgmsnh", q * H**-0.5, own).reshape(B, G, N // G * S, -1)
    scores = jnp.einsum("bgqd,bgtd->bgqt", wide, k, preferred_element_type=jnp.float32)
    weights = _softmax(scores.reshape(B, G, N // G, S, -1), mask[:, :, None])
    weights = weights.astype(v.dtype).reshape(B, G, N // G * S, -1)
    out = jnp.einsum("bgqt,bgtd->bgqd", weights, v, preferred_element_type=jnp.float32)
    out = out.reshape(B, G, N // G, S, N // G, H)
    return jnp.einsum("bgmsmh->bgmsh", out).reshape(B, N, S, H).astype(q.dtype)


def _in_groups(heads: jax.Array, groups: int) -> jax.Array:
    """`[B, N, S, H]` as a cache keeps it, `[B, G, S, D / G]`."""
    B, N, S, H = heads.shape
    if groups == N:
        return heads
    return heads.reshape(B, groups, N // groups, S, H).swapaxes(2, 3).reshape(B, groups, S, -1)


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias, eps 1e-5, all in float32: its parameters are few."""

    def __init__(self, dim: int, *, dtype: DTypeLike, param_dtype: DTypeLike):
        self.dtype = jnp.dtype(dtype)
        # Narrower ones would be widened at every step, each in a kernel of its own.
        wide = jnp.promote_types(float_dtype(param_dtype), jnp.float32)
        self.scale = nnx.Param(jnp.ones(dim, wide))
        self.bias = nnx.Param(jnp.zeros(dim, wide))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` to `[..., D]`."""
        x = x.astype(jnp.float32)
        # Two passes, not E[x^2] - E[x]^2, which loses digits when the mean is large.
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
        y = x * self.scale[...] + self.bias[...]
        return y.astype(self.dtype)


class Attention(nnx.Module):
    """Multi-head attention without biases; queries, keys and values share one weight.

    It is `[3 D, D]`, or `[3, D, D]` where heads lie on several devices, see `sharding.arrange`.
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
        """The three parts of `[B, S, D]`, each `[B, N, S, H]`."""
        qkv = self.in_proj(x).reshape(*x.shape[:2], 3, -1)
        q, k, v = (self._split_heads(qkv[:, :, i]) for i in range(3))
        return q, k, v

    def cross_cache(
        self,
        source: jax.Array,
        dtype: DTypeLike,
        groups: int | None = None,
        *,
        fold: bool = False,
    ) -> CrossCache | FoldedCross:
        """What cross-attention needs of `[B, L, D]`, kept in `dtype` and in G groups.

        With `fold` the weights are folded into it where less is read then, see `FoldedCross`.
        """
        # The queries of so few rows are computed too: two thirds of the weight would be copied.
        k, v = self.qkv(source)[1:]
        weight, out = self.in_proj.weight[...], self.out_proj.weight[...]
        query = weight[: weight.shape[0] // 3]
        if fold and not (isinstance(query, LoraWeight) or isinstance(out, LoraWeight)):
            folded = partial(_folded, k, v, weight, out, dtype)
            if nbytes(jax.eval_shape(folded)) < nbytes((query, out)):
                return folded()
        k, v = (_in_groups(x.astype(dtype), groups or self.num_heads) for x in (k, v))
        return CrossCache(query, k, v)

    def across(self, x: jax.Array, cross: CrossCache | FoldedCross, mask: jax.Array) -> jax.Array:
        """Cross-attention: what `[B, S, D]` reads of its source, `[B, S, D]`."""
        x = x.astype(self.dtype)
        if isinstance(cross, CrossCache):
            return self.output(self._split_heads(linear(x, cross.query)), cross, mask)
        product = jax.vmap(partial(linear, out_dtype=jnp.float32))
        scores = product(x, cross.k).reshape(*x.shape[:2], self.num_heads, -1)  # [B, S, N, L]
        weights = _softmax(scores, mask).reshape(*x.shape[:2], -1).astype(cross.v.dtype)
        return product(weights, cross.v).astype(self.dtype)

    def output(self, q: jax.Array, kv: LayerCache | CrossCache, mask: jax.Array) -> jax.Array:
        """Attends and projects: `[B, N, S, H]` to `[B, S, D]`."""
        y = attend(q, kv.k, kv.v, mask)  # [B, N, S, H]
        return self.out_proj(y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1))

    def _split_heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)


def _folded(
    k: jax.Array,
    v: jax.Array,
    fused: jax.Array | Int8Weight,
    out: jax.Array | Int8Weight,
    dtype: DTypeLike,
) -> FoldedCross:
    """Keys and values `[B, N, L, H]` with the weights of queries, first in `fused`, and of output.

    Head by head, since all at once would move both weights.
    """
    B, N, L, H = k.shape
    k, v = (x.astype(jnp.float32) for x in (k * H**-0.5, v))

    def head(n: jax.Array) -> tuple[jax.Array, jax.Array]:
        into, from_ = (part(w, n * H, H) for part, w in ((rows, fused), (columns, out)))
        return k[:, n] @ into, jnp.einsum("dh,blh->bdl", from_, v[:, n])

    k, v = jax.lax.map(head, jnp.arange(N))  # [N, B, L, D], [N, B, D, L]
    k, v = k.swapaxes(0, 1), jnp.moveaxis(v, 0, 2)
    return FoldedCross(k.reshape(B, N * L, -1).astype(dtype), v.reshape(B, -1, N * L).astype(dtype))


def _gelu(x: jax.Array) -> jax.Array:
    """By the error function, as in torch: its complement, `jax.nn`'s way, takes more kernels."""
    return x * 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


class Block(nnx.Module):
    """`x += self-attention; x += cross-attention, if there is one; x += feed-forward`."""

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
        # audiocraft's `depthwise_init="current"`: what is added shrinks with the depth.
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
        cross: CrossCache | FoldedCross | jax.Array | None,
        cross_mask: jax.Array | None,
        cache: LayerCache | None,
        slot: jax.Array | int,
    ) -> tuple[jax.Array, LayerCache | None]:
        """See `Transformer.__call__`; `cross` may also be the second sequence itself."""
        q, k, v = self.self_attn.qkv(self.norm1(x))
        if cache is None:
            kv = LayerCache(k, v)
        else:
            at = (0, 0, slot, 0)
            k, v = (_in_groups(x, cache.k.shape[1]).astype(cache.k.dtype) for x in (k, v))
            kv = cache = LayerCache(
                jax.lax.dynamic_update_slice(cache.k, k, at),
                jax.lax.dynamic_update_slice(cache.v, v, at),
            )
        x = x + self.self_attn.output(q, kv, mask)
        if cross is not None and cross_mask is not None:
            if isinstance(cross, jax.Array):
                cross = self.cross_attention.cross_cache(cross, cache_dtype(cross.dtype))
            x = x + self._attended(x, cross, cross_mask)
        hidden = _gelu(self.linear1(self.norm2(x)))
        return x + self.linear2(hidden), cache

    def _attended(
        self, x: jax.Array, cross: CrossCache | FoldedCross, mask: jax.Array
    ) -> jax.Array:
        """What cross-attention adds to `[B, S, D]`: zeros to the rows that have no source."""
        runs = self.norm_cross(x).reshape(cross.k.shape[0], -1, *x.shape[1:])  # [C, B / C, S, D]
        heard = self.cross_attention.across(runs[:, 0], cross, mask)[:, None]
        rest = ((0, 0), (0, runs.shape[1] - 1), (0, 0), (0, 0))
        return jnp.pad(heard, rest).reshape(x.shape)


Around = Callable[[Block], Callable[..., tuple[jax.Array, LayerCache | None]]]


class Transformer(nnx.Module):
    """A stack of blocks, unrolled: each layer owns its weights and its cache.

    What is set as `around` runs a block in its own way: training recomputes it backwards, or
    gathers its weights from many devices first. None calls it.

    Args:
      dim: D.
      num_heads: N.
      num_layers: how many blocks.
      ffn_dim: F.
      cross_attention: whether every block looks at a second sequence.
      dtype: of the computation.
      param_dtype: of the stored parameters.
      rngs: stream `params` is used.
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
        self.around: Around | None = None
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
        cross: tuple[CrossCache | FoldedCross, ...] | jax.Array | None = None,
        cross_mask: jax.Array | None = None,
        cache: tuple[LayerCache, ...] | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple[LayerCache, ...] | None]:
        """Runs every block.

        Args:
          x: `[B, S, D]`, positions already added.
          mask: bool `[B or 1, S, T]`; T is S, or the length of the cache if one is given.
          cross: from `cross_kv`, one per layer, or the second sequence itself `[C, L, D]`, or None.
            C divides B, and of every B / C rows the first attends to it, the others to nothing.
          cross_mask: bool `[C, L]`, which of those are real.
          cache: keys and values of what came before, one per layer; those of `x` are written
            at `slot` and the whole cache is attended under `mask`.
          slot: where in the cache `x` begins.

        Returns:
          `[B, S, D]` and the new caches (None if there were none).
        """
        mask = mask[:, None]
        if cross_mask is not None:
            cross_mask = cross_mask[:, None, None, :]
        caches = []
        for i, layer in enumerate(self.layers):
            block = layer if self.around is None else self.around(layer)
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
    ) -> tuple[CrossCache | FoldedCross, ...]:
        """Every layer's keys and values of the second sequence, `[B, L, D]`.

        They are kept in `dtype`, by default that of `source`, in `groups`, by default one per head.
        With `fold` those of a short sequence have weights folded into them.
        """
        dtype = dtype or source.dtype
        return tuple(
            layer.cross_attention.cross_cache(source, dtype, groups, fold=fold)
            for layer in self.layers
        )
