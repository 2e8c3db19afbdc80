"""The Frechet distance between two sets of embeddings, each described by a Gaussian.

    distance = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

for means m and covariances S (divided by n - 1). Each covariance is held as a root: a matrix A with
S = A' A. The last trace is then the sum of the singular values of A1 A2', which is real whatever
the rank, needs no epsilon, and gives exactly zero for equal sets. The usual way, a matrix square
root of S1 S2, gives complex numbers where there are fewer rows than dimensions.

Everything is float64.
"""

import dataclasses

import numpy as np

from musicgen_jax.errors import UserError

_ASYMMETRY = 1e-5  # of a covariance, relative to its largest entry: float32 sums differ by less


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of rows.

    Attributes:
      mean: float64 [D].
      root: float64 [R, D]; `root.T @ root` is the covariance.
      count: rows that were measured; 0 if unknown.
    """

    mean: np.ndarray
    root: np.ndarray
    count: int = 0

    @property
    def covariance(self) -> np.ndarray:
        """float64 [D, D]."""
        return self.root.T @ self.root


class RunningGaussian:
    """Mean and covariance of rows that arrive in batches, in memory of 2 D^2 numbers.

    The order and size of the batches change the result by rounding only.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = np.zeros(0)
        self._root = np.zeros((0, 0))  # of the scatter matrix: the covariance times n - 1

    def update(self, rows: np.ndarray) -> None:
        """Adds rows, float [n, D].

        Raises:
          UserError: they are not [n, D], not finite, or of another width than before.
        """
        rows = checked(rows)
        n, dim = rows.shape
        if not n:
            return
        mean = rows.mean(axis=0)
        if not self.count:
            self._mean, self._root = np.zeros(dim), np.zeros((0, dim))
        if dim != len(self._mean):
            raise UserError(f"rows of {dim} numbers among rows of {len(self._mean)}")
        shift, total = mean - self._mean, self.count + n
        between = np.sqrt(self.count * n / total) * shift
        self._root = np.concatenate([self._root, rows - mean, between[None]])
        if len(self._root) > 2 * dim:
            self._root = _short(self._root)
        self._mean = self._mean + shift * (n / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The statistics so far.

        Raises:
          UserError: there were fewer than two rows.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 rows, got {self.count}")
        return Gaussian(self._mean, _short(self._root) / np.sqrt(self.count - 1), self.count)


def gaussian(rows: np.ndarray) -> Gaussian:
    """Mean and covariance of rows, float [n, D] with n of 2 or more."""
    running = RunningGaussian()
    running.update(rows)
    return running.gaussian()


def gaussian_of(mean: np.ndarray, covariance: np.ndarray, count: int = 0) -> Gaussian:
    """A Gaussian from stored statistics.

    Args:
      mean: float [D].
      covariance: float [D, D], symmetric. Eigenvalues below zero, which rounding makes, count as
        zero.
      count: rows that were measured; 0 if unknown.

    Raises:
      UserError: the shapes do not fit, a value is not finite, or the matrix is not a covariance.
    """
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
        raise UserError(
            f"mean and covariance must be [D] and [D, D], got {mean.shape} and {covariance.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError("mean or covariance contains values that are not finite")
    scale = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > _ASYMMETRY * scale:
        raise UserError("the covariance is not symmetric")
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -_ASYMMETRY * scale * mean.size:
        raise UserError(f"the covariance has a negative eigenvalue, {values[0]:.3g}")
    return Gaussian(mean, np.sqrt(np.maximum(values, 0))[:, None] * vectors.T, count)


def distance(a: Gaussian, b: Gaussian) -> float:
    """The Frechet distance between two Gaussians; rounding below zero is clamped to zero.

    Raises:
      UserError: they have different dimensions.
    """
    return max(unclamped_distance(a, b), 0.0)


def unclamped_distance(a: Gaussian, b: Gaussian) -> float:
    """`distance`, but equal Gaussians may be at a distance just below zero, by rounding."""
    if a.mean.shape != b.mean.shape:
        raise UserError(f"embeddings of {a.mean.size} and of {b.mean.size} numbers do not compare")
    shift = a.mean - b.mean
    spread = np.square(a.root).sum() + np.square(b.root).sum()
    mixed = np.linalg.svd(_short(a.root) @ _short(b.root).T, compute_uv=False).sum()
    return float(shift @ shift + spread - 2 * mixed)


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The Frechet distance between two sets of rows.

    Args:
      x: float [N, D], N of 2 or more.
      y: float [M, D], M of 2 or more.

    Raises:
      UserError: a set is too small, not finite, or the widths differ.
    """
    return distance(gaussian(x), gaussian(y))


def expected_bias(reference: Gaussian, n: int, m: int) -> float:
    """The distance to expect between n and m independent rows of one and the same Gaussian.

    To first order in 1/n and 1/m. Rows of one clip resemble each other, so n rows of few clips
    have a larger bias than this.

    Args:
      reference: the Gaussian.
      n: rows of one set.
      m: rows of the other.
    """
    values = np.square(np.linalg.svd(reference.root, compute_uv=False))
    values = values[values > values.max(initial=0) * 1e-12]
    pairs = values[:, None] * values / (values[:, None] + values)
    return float((1 / n + 1 / m) * (values.sum() * 1.25 + pairs.sum() / 2))


def _short(root: np.ndarray) -> np.ndarray:
    """A root of the same covariance with at most D rows."""
    return np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def checked(rows: np.ndarray) -> np.ndarray:
    """Embeddings as float64 [n, D].

    Raises:
      UserError: they are of another shape or not finite.
    """
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or not rows.shape[1]:
        raise UserError(f"embeddings must be [rows, D], got {rows.shape}")
    if not np.isfinite(rows).all():
        raise UserError("the embeddings contain values that are not finite")
    return rows
