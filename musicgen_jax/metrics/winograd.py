"""3 x 3 convolutions with a quarter of the multiplications: Winograd's algorithm on 4 x 4 tiles.

A tile of the output needs 6 x 6 numbers of the input. Input and kernel are polynomials, whose
product is known by its values at six points in each direction: `BT` and `G` evaluate them, `AT`
finds the output from the products. So 36 products replace 144, and for a tile of the whole layer
they are 36 products of matrices.

The points are 0, +-1/sqrt(2), +-sqrt(2) and infinity. With the usual ones, 0, +-1 and +-2, the
error of rounding is several times larger.
"""

import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE = 4  # of the output, in each direction
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))  # and infinity
_SIDE = TILE + 2  # of the input


@functools.cache
def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`BT` [6, 6], `G` [6, 3] and `AT` [4, 6], float64."""
    points = np.array(_POINTS)
    others = [np.delete(points, i) for i in range(len(points))]
    bt = np.zeros((_SIDE, _SIDE))
    for row, roots in zip(bt, [*others, points], strict=True):
        row[: len(roots) + 1] = np.poly(roots)[::-1].round(12)  # zeros are exact
    infinity = np.eye(_SIDE)[-1]
    gaps = np.array([np.prod(p - rest) for p, rest in zip(points, others, strict=True)])
    g = np.vstack([points[:, None] ** np.arange(3) / gaps[:, None], infinity[-3:]])
    at = np.vstack([points[:, None] ** np.arange(TILE), infinity[-TILE:]]).T
    return bt, g, at


def kernels(weight: jax.Array) -> jax.Array:
    """The kernels for `convolve`: a weight [3, 3, I, O] to float32 [36, I, O]."""
    g = _matrices()[1].astype(np.float32)
    values = jnp.einsum("ia,abco,jb->ijco", g, weight.astype(jnp.float32), g)
    return values.reshape(_SIDE**2, *weight.shape[2:])


def convolve(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """The convolution, with zeros around the input.

    Args:
      x: float32 [B, T, F, I]; T and F are multiples of 4.
      kernels: returned by the function `kernels`, [36, I, O].

    Returns:
      float32 [B, T, F, O].
    """
    B, T, F, _ = x.shape
    bt, _, at = _matrices()
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = [padded[:, i : i + T : TILE][:, : T // TILE] for i in range(_SIDE)]
    values = []
    for weights in bt:
        row = lax.optimization_barrier(_sum(weights, rows))  # or it is computed six times
        places = [row[:, :, j : j + F : TILE][:, :, : F // TILE] for j in range(_SIDE)]
        values += [_sum(weights, places) for weights in bt]
    # XLA on CPU multiplies the fastest by the transpose of what lies in memory. The barriers keep
    # it from undoing the transposition.
    tiles = lax.optimization_barrier(jnp.stack(values).reshape(_SIDE**2, -1, x.shape[-1]))
    tiles = lax.optimization_barrier(tiles.swapaxes(1, 2))
    products = jnp.einsum("vip,vio->vpo", tiles, kernels)
    products = products.reshape(_SIDE, _SIDE, B, T // TILE, F // TILE, -1)
    rows = [lax.optimization_barrier(_sum(weights, products)) for weights in at]
    columns = [jnp.stack([_sum(weights, row) for weights in at], axis=3) for row in rows]
    return jnp.stack(columns, axis=2).reshape(B, T, F, -1)


def _sum(weights: np.ndarray, parts: Iterable[jax.Array]) -> jax.Array:
    """The weighted sum of six arrays of the same shape."""
    terms = [float(w) * part for w, part in zip(weights, parts, strict=True) if w]
    return functools.reduce(operator.add, terms)
