"""A stack of convolutions applied to a long signal tile by tile.

At full rate each layer's result takes a hundred megabytes for ten seconds of audio: it is written
to memory and read back by the next layer. The result for a short tile stays in the processor's
cache, and only one tile needs memory. Each tile is computed with the surrounding samples that it
depends on, and then cut out.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Stack = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The rate change and reach of a stack; a unit is one sample at the lower rate.

    Attributes:
      samples_in: input samples per unit.
      samples_out: output samples per unit.
      left: number of earlier units that a unit of the output depends on.
      right: number of later units that a unit of the output depends on.
    """

    samples_in: int
    samples_out: int
    left: int
    right: int


def in_tiles(stack: Stack, x: jax.Array, tiling: Tiling, tile: int) -> jax.Array:
    """Computes `stack(x)`, up to rounding, `tile` units at a time.

    The first and last tiles end where `x` does, so that they get the padding of the whole signal.

    Args:
      stack: [B, W, I] -> [B, ceil(W / samples_in) * samples_out, O].
      x: float [B, W, I].
      tiling: rate change and reach of the stack.
      tile: units per tile, at least 1.
    """
    ins, outs, left, right = dataclasses.astuple(tiling)
    window, width = left + tile + right, x.shape[1] // ins
    tiles = (width - right) // tile - 1  # the last one takes all the remaining units
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
