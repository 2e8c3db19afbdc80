"""Kernel Audio Distance: 100 times the unbiased squared MMD under a Gaussian kernel.

    k(a, b) = exp(-|a - b|^2 / (2 s^2 + 1e-8))

The bandwidth s is the median distance between two rows of the reference. Unlike the Frechet
distance it assumes no Gaussian and has no bias from small sets; it may be slightly negative.
"""

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.metrics.frechet import checked

_SCALE = 100
_BLOCK = 1024  # rows of a block of distances
_MEDIAN_ROWS = 4096  # the median of more rows is that of so many, drawn with a fixed seed


def kernel_audio_distance(x: np.ndarray, y: np.ndarray, *, bandwidth: float | None = None) -> float:
    """The distance of evaluated rows from reference rows.

    Args:
      x: float [N, D], N of 2 or more, evaluated.
      y: float [M, D], M of 2 or more, the reference.
      bandwidth: s; by default `median_distance(y)`.

    Returns:
      A float, computed in float64 and in blocks: memory does not grow with N M.

    Raises:
      UserError: a set is too small, not finite, or the widths differ.
    """
    x, y = checked(x), checked(y)
    if x.shape[1] != y.shape[1]:
        raise UserError(f"embeddings of {x.shape[1]} and of {y.shape[1]} numbers do not compare")
    if min(len(x), len(y)) < 2:
        raise UserError(f"each set needs at least 2 rows, got {len(x)} and {len(y)}")
    s = median_distance(y) if bandwidth is None else bandwidth
    gamma = 1 / (2 * s**2 + 1e-8)
    within = [
        (_kernel_sum(rows, rows, gamma) - len(rows)) / (len(rows) * (len(rows) - 1))
        for rows in (x, y)
    ]
    across = _kernel_sum(x, y, gamma) / (len(x) * len(y))
    return float(_SCALE * (sum(within) - 2 * across))


def median_distance(rows: np.ndarray) -> float:
    """The median Euclidean distance between two different rows; of an even number the lower one.

    Args:
      rows: float [N, D], N of 2 or more. Of more than 4096, that many drawn with a fixed seed.
    """
    rows = checked(rows)
    if len(rows) < 2:
        raise UserError(f"a median distance needs at least 2 rows, got {len(rows)}")
    if len(rows) > _MEDIAN_ROWS:
        rows = rows[np.random.default_rng(0).choice(len(rows), _MEDIAN_ROWS, replace=False)]
    squares = np.concatenate(
        [_squares(rows[i : i + 1], rows[i + 1 :])[0] for i in range(len(rows) - 1)]
    )
    middle = (len(squares) - 1) // 2
    return float(np.sqrt(np.partition(squares, middle)[middle]))


class RowSample:
    """At most `limit` rows of a stream, each kept with equal chance; the seed is fixed."""

    def __init__(self, limit: int):
        self.limit, self.seen = limit, 0
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []  # keys and rows
        self._held = 0
        self._rng = np.random.default_rng(0)

    def add(self, rows: np.ndarray) -> None:
        """Takes rows [n, D]: every row gets a random key, and the rows of the lowest keys stay."""
        rows = np.asarray(rows)
        self._parts.append((self._rng.random(len(rows)), rows))
        self._held += len(rows)
        self.seen += len(rows)
        if self._held > 2 * self.limit:
            self._compact()

    def rows(self) -> np.ndarray:
        """The rows, float [n, D].

        Raises:
          UserError: there are none.
        """
        if not self.seen:
            raise UserError("there are no rows to draw from")
        self._compact()
        return self._parts[0][1]

    def _compact(self) -> None:
        keys, rows = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        if len(keys) > self.limit:
            keep = np.sort(np.argpartition(keys, self.limit)[: self.limit])
            keys, rows = keys[keep], rows[keep]
        self._parts, self._held = [(keys, rows)], len(keys)


def _kernel_sum(a: np.ndarray, b: np.ndarray, gamma: float) -> float:
    return sum(
        float(np.exp(-gamma * _squares(a[i : i + _BLOCK], b[j : j + _BLOCK])).sum())
        for i in range(0, len(a), _BLOCK)
        for j in range(0, len(b), _BLOCK)
    )


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances, [n, m]."""
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.maximum(squares, 0)
