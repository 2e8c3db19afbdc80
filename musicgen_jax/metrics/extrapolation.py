"""FAD-infinity: the Frechet distance that infinitely many clips would have.

The distance of n rows is too large by about c / n. So it is measured for growing parts of the set,
a straight line is fitted to it over 1 / n, and the line's value at 0 is the estimate.

The parts are drawn without replacement. With replacement, as fadtk draws, a large part tends to
the n rows themselves, and the line leads back to the plain distance. They are drawn by clip: rows
of one clip resemble each other, so single rows would make small parts look better than they are.

To stream through any number of clips, each clip goes into one of 32 blocks at random, and a part is
a union of blocks. A block is kept as sums, so memory does not grow with the clips.

The interval is a bootstrap over clips by subsamples: 24 blocks out of 32, without replacement. It
must not repeat clips, since repeated clips would bring back the bias that is to be removed.
Estimates from a random three quarters of a set spread 1 / sqrt(3) times as much as estimates from
whole sets, so their spread is multiplied by sqrt(3). The interval errs on the wide side: the line
of a smaller set is less certain.
"""

import dataclasses

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.metrics.frechet import Gaussian, checked

BLOCKS = 32
SEED = 0
_LEAST_ROWS = 500
_LEAST_CLIPS = 8
_DRAWS = 4  # of the order in which blocks are put together, for the estimate
_SUBSAMPLES, _KEPT = 64, 0.75  # for the interval
_SIZES, _FEW_SIZES = 8, 3  # of the parts, from a quarter of the blocks to all


@dataclasses.dataclass(frozen=True)
class Extrapolated:
    """An estimate.

    Attributes:
      value: the distance of infinitely many rows to the reference as it is. May be below zero.
      low, high: its 95 % interval.
      r_squared: of the straight line, 1 where all points are on it.
      points: (rows, mean distance) that the line was fitted to.
    """

    value: float
    low: float
    high: float
    r_squared: float
    points: tuple[tuple[float, float], ...]


class Blocks:
    """Sums over the rows of randomly drawn blocks of clips.

    Args:
      clips: the most clips that will come.
      reference: the other side of the distance.
    """

    def __init__(self, clips: int, reference: Gaussian):
        dim = reference.mean.size
        self.reference = reference
        self.clips = 0
        count = min(BLOCKS, clips)
        self._block_of = np.random.default_rng(SEED).permutation(clips) % count
        self._counts = np.zeros(count)
        # Relative to the reference's mean: sums of squares keep their digits.
        self._sums, self._squares = np.zeros((count, dim)), np.zeros((count, dim, dim))

    def add(self, rows: np.ndarray) -> None:
        """Takes the rows of the next clip, float [n, D]."""
        rows = checked(rows) - self.reference.mean
        block = self._block_of[self.clips]
        self.clips += 1
        self._counts[block] += len(rows)
        self._sums[block] += rows.sum(axis=0)
        self._squares[block] += rows.T @ rows

    def extrapolated(self) -> Extrapolated:
        """The estimate.

        Raises:
          UserError: there are too few rows or clips for one.
        """
        dim, rows = self.reference.mean.size, int(self._counts.sum())
        least = max(_LEAST_ROWS, 4 * dim)
        if rows < least or self.clips < _LEAST_CLIPS:
            raise UserError(
                f"it needs {least} rows of {_LEAST_CLIPS} clips, got {rows} of {self.clips}"
            )
        filled = np.flatnonzero(self._counts)
        rng = np.random.default_rng(SEED)
        whole = self._line([rng.permutation(filled) for _ in range(_DRAWS)], _SIZES)
        kept = max(round(len(filled) * _KEPT), 4)
        subsamples = [rng.permutation(filled)[:kept] for _ in range(_SUBSAMPLES)]
        values = np.array([self._line([order], _FEW_SIZES).value for order in subsamples])
        spread = (values - values.mean()) * (kept / (len(filled) - kept)) ** 0.5
        low, high = np.quantile(spread, (0.025, 0.975))
        return dataclasses.replace(whole, low=whole.value - high, high=whole.value - low)

    def _line(self, orders: list[np.ndarray], sizes: int) -> Extrapolated:
        """Fits the line to growing parts of these blocks, in these orders and four turns of each.

        Because each turn is a quarter, the parts of a quarter are disjoint and use every block
        once.
        """
        count = len(orders[0])
        turned = [np.roll(order, turn * count // 4) for order in orders for turn in range(4)]
        parts = np.unique(np.linspace(max(count / 4, 2), count, sizes).round().astype(int))
        found = np.array(
            [
                np.mean([self._distance(order[:k]) for order in turned], axis=0)
                if k < count
                else self._distance(orders[0])
                for k in parts
            ]
        )
        rows, distances = found.T
        slope, value = np.polyfit(1 / rows, distances, 1)
        rest = np.square(distances - value - slope / rows).sum()
        spread = np.square(distances - distances.mean()).sum()
        points = tuple((float(n), float(d)) for n, d in zip(rows, distances, strict=True))
        r_squared = float(1 - rest / spread) if spread else 1.0
        return Extrapolated(float(value), float("nan"), float("nan"), r_squared, points)

    def _distance(self, blocks: np.ndarray) -> tuple[float, float]:
        """Rows of a union of blocks, and its distance to the reference."""
        n = self._counts[blocks].sum()
        mean = self._sums[blocks].sum(axis=0) / n
        covariance = (self._squares[blocks].sum(axis=0) - n * np.outer(mean, mean)) / (n - 1)
        # The reference's root may be any A with S = A' A: A C A' has the eigenvalues of S C.
        root = self.reference.root
        values = np.linalg.eigvalsh(root @ covariance @ root.T)
        mixed = np.sqrt(np.maximum(values, 0)).sum()
        spread = np.trace(covariance) + np.square(root).sum()
        return n, float(mean @ mean + spread - 2 * mixed)
