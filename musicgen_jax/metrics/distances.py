"""`fad` and `kad`: how far the rows of one set are from those of another."""

from typing import Any

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import protocols
from musicgen_jax.metrics.extrapolation import SEED, Blocks
from musicgen_jax.metrics.features import Extractor
from musicgen_jax.metrics.frechet import (
    Gaussian,
    RunningGaussian,
    distance,
    expected_bias,
    gaussian,
    unclamped_distance,
)
from musicgen_jax.metrics.kernel import RowSample, kernel_audio_distance, median_distance
from musicgen_jax.metrics.measures import Embedding, Known, Measure, Scores, level_of, level_words

_KERNEL_ROWS = 20_000  # of each side at most: the cost grows with the square of their number


class Distances(Measure):
    """`fad` and `kad`: how far the rows of one set are from those of another.

    Args:
      metrics: "fad", "kad" or both.
      embedding: the network.
      protocol: of the figures.
      clips: how many clips to judge there are.
      statistics: the reference, if it is a file of statistics.
    """

    name = "embedding"

    def __init__(
        self,
        metrics: tuple[str, ...],
        embedding: Embedding,
        protocol: protocols.Protocol,
        clips: int,
        statistics: Gaussian | None = None,
    ):
        self.metrics, self.embedding, self.protocol = metrics, embedding, protocol
        self._level, self._weights = level_of(protocol), embedding.weights
        key = f"{embedding.name}\n{self._weights}\n{embedding.definition}"
        self.generated = Extractor(key, embedding.embed, self._level)
        self.reference = None if statistics is not None else Extractor(key, embedding.embed)
        self._clips, self._blocks = clips, None
        self._target = statistics
        self._no_target: UserError | None = None
        self._ours, self._theirs = RunningGaussian(), RunningGaussian()
        self._sample, self._known_sample = RowSample(_KERNEL_ROWS), RowSample(_KERNEL_ROWS)
        self._heard = self._known = 0

    @property
    def reference_clips(self) -> int:
        """The number of clips of the reference that have rows."""
        return self._known

    @property
    def target(self) -> Gaussian | None:
        """The reference's statistics, after the whole reference; None if it has too few rows."""
        if self._target is None and self._theirs.count > 1:
            self._target = self._theirs.gaussian()
        return self._target

    def hear_reference(self, clip: str, value: np.ndarray) -> None:
        """See `Measure`."""
        self._known += 1
        self._theirs.update(value)
        if "kad" in self.metrics:
            self._known_sample.add(value)

    def hear(self, clip: str, value: np.ndarray) -> Scores:
        """See `Measure`."""
        target = self.target
        self._heard += 1
        self._ours.update(value)
        if "kad" in self.metrics:
            self._sample.add(value)
        if "fad" not in self.metrics or target is None:
            return {}
        self._blocks = self._blocks or Blocks(self._clips, target)
        self._blocks.add(value)
        return {"fad": distance(gaussian(value), target)} if len(value) > 1 else {}

    def figures(self, known: Known) -> dict[str, dict[str, Any] | UserError]:
        """See `Measure`."""
        figures: dict[str, dict[str, Any] | UserError] = {}
        for metric, measure in (("fad", self._fad), ("kad", self._kad)):
            if metric in self.metrics:
                try:
                    figures[metric] = measure(known)
                except UserError as error:
                    figures[metric] = error
        return figures

    def _common(self, known: Known) -> dict[str, Any]:
        target = self.target
        return {
            "protocol": self.protocol.name,
            "embedding": self.embedding.name,
            "weights": self._weights,
            "definition": self.embedding.definition + level_words(self._level),
            "clips": self._heard,
            "rows": self._ours.count,
            "reference": known.reference,
            "reference_clips": self._known or None,
            "reference_rows": (target.count if target else self._theirs.count) or None,
        }

    def _fad(self, known: Known) -> dict[str, Any]:
        own, target = self._ours.gaussian(), self.target
        if target is None:
            raise UserError(
                f"the reference: a covariance needs at least 2 rows, got {self._theirs.count}"
            )
        value, dim = unclamped_distance(own, target), len(own.mean)
        result = {"value": max(value, 0.0)} | self._common(known)
        result["method"] = "float64, covariance over n - 1, trace by singular values"
        result["clamped"] = value < 0
        if value < 0:
            known.warn(f"fad: rounding made it {value:.2g}; clamped to 0")
        if own.count < dim:
            known.warn(
                f"fad: {own.count} rows for {dim} dimensions: the covariance is incomplete, and "
                f"the distance is mostly bias"
            )
        if target.count:
            bias = expected_bias(target, own.count, target.count)
            result["expected_bias"] = bias
            if own.count != target.count:
                known.warn(
                    f"fad: {own.count} and {target.count} rows; sets of these sizes from one "
                    f"Gaussian would score about {bias:.3g}, so compare only figures of equal sizes"
                )
        result["infinity"] = self._infinity()
        return result

    def _infinity(self) -> dict[str, Any]:
        assert self._blocks is not None
        try:
            found = self._blocks.extrapolated()
        except UserError as error:
            return {"value": None, "reason": str(error)}
        return {
            "value": found.value,
            "interval": [found.low, found.high],
            "r_squared": found.r_squared,
            "seed": SEED,
            "points": [list(point) for point in found.points],
            "method": "a line over 1 / rows, through parts drawn by clip without replacement; 95 % "
            "interval by subsamples of the clips",
        }

    def _kad(self, known: Known) -> dict[str, Any]:
        if self._target is not None and not self._known_sample.seen:
            raise UserError("it needs the reference's audio, not its statistics")
        if min(self._sample.seen, self._known_sample.seen) < 2:
            raise UserError(
                f"each set needs at least 2 rows, got {self._sample.seen} and "
                f"{self._known_sample.seen}"
            )
        x, y = self._sample.rows(), self._known_sample.rows()
        bandwidth = median_distance(y)
        return {
            "value": kernel_audio_distance(x, y, bandwidth=bandwidth),
            **self._common(known),
            "bandwidth": bandwidth,
            "rows_used": [len(x), len(y)],
            "method": "100 MMD^2, unbiased, Gaussian kernel, median distance of the reference",
        }
