"""Softmax attention over keys and values, and the caches that hold them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one attention layer, as G groups of heads in separate blocks.

    Each group holds N / G heads side by side; see `runtime.tuning.Tuning.heads_per_block`.
    """

    k: jax.Array  # [B, G, S, D / G]
    v: jax.Array  # [B, G, S, D / G]


def write(cache: jax.Array, new: jax.Array, slot: jax.Array | int) -> jax.Array:
    """Writes new keys or values `[B, G, S, W]` into a cache `[B, G, T, W]`, in place.

    Args:
      cache: the keys or values so far.
      new: the keys or values to write; cast to the dtype of the cache.
      slot: first slot to write: one number for all rows, or int32 `[B]`.
    """
    new = new.astype(cache.dtype)
    if np.ndim(slot) == 0:
        return lax.dynamic_update_slice_in_dim(cache, new, slot, axis=2)
    return jax.vmap(partial(lax.dynamic_update_slice_in_dim, axis=1))(cache, new, slot)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention; a fully masked query gives exact zeros.

    Args:
      q: queries `[B, N, S, H]`.
      k: keys `[B, N, T, H]`, or `[B, G, T, N / G * H]` with heads side by side.
      v: values, in the same layout as `k`.
      mask: bool, broadcasts to `[B, N, S, T]`, the same for all heads; True where a query may
        attend.

    Returns:
      `[B, N, S, H]` in the dtype of `q`. Scores and softmax are float32.
    """
    if k.dtype.itemsize == 1:  # 8-bit floats are stored, not computed with
        k, v = k.astype(q.dtype), v.astype(q.dtype)
    if k.shape[1] != q.shape[1]:
        return _attend_in_groups(q, k, v, mask)
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("bnsh,bnth->bnst", q * scale, k, preferred_element_type=jnp.float32)
    weights = masked_softmax(scores, mask)
    out = jnp.einsum(
        "bnst,bnth->bnsh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return out.astype(q.dtype)


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis where the mask is True; zeros where it is False."""
    # A finite floor instead of -inf: a fully masked query gives no NaN, nor does its gradient.
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0)


def _attend_in_groups(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`attend` for heads stored side by side, with products that are wide enough for a TPU.

    A head multiplies the keys of the other heads in its group by zeros and keeps only its own part
    of the values. This takes N / G times the arithmetic, but arithmetic is negligible in decoding.
    """
    B, N, S, H = q.shape
    G = k.shape[1]
    own = jnp.eye(N // G, dtype=q.dtype)
    q = q.reshape(B, G, N // G, S, H)
    wide = jnp.einsum("bgmsh,mn->bgmsnh", q * H**-0.5, own).reshape(B, G, N // G * S, -1)
    scores = jnp.einsum("bgqd,bgtd->bgqt", wide, k, preferred_element_type=jnp.float32)
    weights = masked_softmax(scores.reshape(B, G, N // G, S, -1), mask[:, :, None])
    weights = weights.astype(v.dtype).reshape(B, G, N // G * S, -1)
    out = jnp.einsum("bgqt,bgtd->bgqd", weights, v, preferred_element_type=jnp.float32)
    out = out.reshape(B, G, N // G, S, N // G, H)
    return jnp.einsum("bgmsmh->bgmsh", out).reshape(B, N, S, H).astype(q.dtype)


def in_groups(heads: jax.Array, groups: int) -> jax.Array:
    """Converts `[B, N, S, H]` to the layout of a cache, `[B, G, S, D / G]`."""
    B, N, S, H = heads.shape
    if groups == N:
        return heads
    return heads.reshape(B, groups, N // groups, S, H).swapaxes(2, 3).reshape(B, groups, S, -1)
