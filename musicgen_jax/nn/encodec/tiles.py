"""A stack of convolutions applied to a long signal tile by tile.

At full rate each layer's result is a hundred megabytes for ten seconds, written to memory and read
back by the next layer. Of a short stretch it stays in a processor's cache, and memory for one such
stretch is enough. A tile is computed with as much around it as its samples depend on, and cut out.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Stack = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a stack changes the rate, and how far it looks; a unit is one sample of the lower rate.

    Attributes:
      samples_in: samples of the input that are a unit.
      samples_out: samples of the output that are a unit.
      left: units before its own that a unit of the output depends on.
      right: units behind it.
    """

    samples_in: int
    samples_out: int
    left: int
    right: int


def in_tiles(stack: Stack, x: jax.Array, tiling: Tiling, tile: int) -> jax.Array:
    """`stack(x)` up to rounding, a `tile` of units at a time.

    The tiles at both ends of `x` end where it does, so that they are padded as the whole would be.

    Args:
      stack: [B, W, I] -> [B, ceil(W / samples_in) * samples_out, O].
      x: float [B, W, I].
      tiling: what is known of the stack.
      tile: units, at least 1.
    """
    ins, outs, left, right = dataclasses.astuple(tiling)
    window, width = left + tile + right, x.shape[1] // ins
    tiles = (width - right) // tile - 1  # the last takes all that is left
    if tiles < 1 or width < window:
        return stack(x)

    def begin(i):
        return jnp.maximum(i * tile - left, 0)

    def add(i: jax.Array, out: jax.Array) -> jax.Array:
        y = stack(lax.dynamic_slice_in_dim(x, begin(i) * ins, window * ins, axis=1))
        y = lax.dynamic_slice_in_dim(y, (i * tile - begin(i)) * outs, tile * outs, axis=1)
        return lax.dynamic_update_slice_in_dim(out, y, i * tile * outs, axis=1)

    done = tiles * tile
    first = max(done - left, 0)
    last = stack(x[:, first * ins :])[:, (done - first) * outs :]
    out = jnp.zeros((x.shape[0], done * outs + last.shape[1], last.shape[2]), last.dtype)
    out = lax.fori_loop(0, tiles, add, out)
    return lax.dynamic_update_slice_in_dim(out, last, done * outs, axis=1)
