"""Cross-attention to a short text, with its weights folded into the text's keys and values.

This is a second algorithm for the same result: see `FoldedCross`.
"""

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from musicgen_jax.nn.attention import masked_softmax
from musicgen_jax.nn.linear import linear
from musicgen_jax.nn.weights import Int8Weight, columns, rows

if TYPE_CHECKING:
    from musicgen_jax.nn.transformer import Attention


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FoldedCross:
    """A `transformer.CrossCache` of a short source that includes the query and output weights.

    A score is `(Wq x) . k = x . (Wq' k)`, and the result is a sum of `Wo v`. The products `Wq' k`
    and `Wo v` do not depend on the step. So each step reads N L vectors instead of two weight
    matrices.
    """

    k: jax.Array  # [B, N L, D], already divided by the root of H
    v: jax.Array  # [B, D, N L]

    def read(self, attention: "Attention", x: jax.Array, mask: jax.Array) -> jax.Array:
        """See `transformer.Cross`."""
        product = jax.vmap(partial(linear, out_dtype=jnp.float32))
        scores = product(x, self.k).reshape(*x.shape[:2], attention.num_heads, -1)  # [B, S, N, L]
        weights = masked_softmax(scores, mask).reshape(*x.shape[:2], -1).astype(self.v.dtype)
        return product(weights, self.v).astype(x.dtype)


def fold(
    k: jax.Array,
    v: jax.Array,
    fused: jax.Array | Int8Weight,
    out: jax.Array | Int8Weight,
    dtype: DTypeLike,
) -> FoldedCross:
    """Folds the query weights (the first part of `fused`) and `out` into `[B, N, L, H]` k and v.

    Works head by head, since folding all heads at once would move both weights.
    """
    B, N, L, H = k.shape
    k, v = (x.astype(jnp.float32) for x in (k * H**-0.5, v))

    def head(n: jax.Array) -> tuple[jax.Array, jax.Array]:
        into, from_ = (part(w, n * H, H) for part, w in ((rows, fused), (columns, out)))
        return k[:, n] @ into, jnp.einsum("dh,blh->bdl", from_, v[:, n])

    k, v = jax.lax.map(head, jnp.arange(N))  # [N, B, L, D], [N, B, D, L]
    k, v = k.swapaxes(0, 1), jnp.moveaxis(v, 0, 2)
    return FoldedCross(k.reshape(B, N * L, -1).astype(dtype), v.reshape(B, -1, N * L).astype(dtype))
