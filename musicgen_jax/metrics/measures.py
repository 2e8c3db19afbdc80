"""The measures, each fed clip by clip: first the reference, then the clips to judge.

A measure says what it wants to know of a clip (`Extractor`s), takes that, scores single clips where
it can, and gives its figures at the end. Per clip it keeps nothing, or a few kilobytes where clips
are compared in pairs.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from musicgen_jax.audio import normalize_audio
from musicgen_jax.errors import UserError
from musicgen_jax.metrics import protocols
from musicgen_jax.metrics.chroma import agreement, loudest_classes
from musicgen_jax.metrics.divergence import kl_divergence
from musicgen_jax.metrics.extrapolation import SEED, Blocks
from musicgen_jax.metrics.features import UNCHANGED, Extractor, Level, cached
from musicgen_jax.metrics.frechet import (
    Gaussian,
    RunningGaussian,
    distance,
    expected_bias,
    gaussian,
    unclamped_distance,
)
from musicgen_jax.metrics.kernel import RowSample, kernel_audio_distance, median_distance
from musicgen_jax.metrics.passt import Passt

_KERNEL_ROWS = 20_000  # of each side at most: the cost grows with their square
_TEXTS = 8  # captions at once

Scores = dict[str, float]
"""Of one clip, by metric."""


class Embedding(Protocol):
    """A network that turns a clip into rows."""

    name: str

    @property
    def weights(self) -> str:
        """A digest of its weights."""
        ...

    @property
    def definition(self) -> str:
        """How a clip becomes rows, in words."""
        ...

    def embed(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Rows of one clip, float [C, W] to float32 [rows, D]."""
        ...


class TextEmbedding(Embedding, Protocol):
    """One that places texts among the clips."""

    def embed_text(self, texts: list[str]) -> np.ndarray:
        """Rows of N texts, float32 [N, D]."""
        ...


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known about the sets when figures are made.

    Attributes:
      reference: SHA-256 that stands for the reference.
      warn: takes a warning for the report.
    """

    reference: str
    warn: Callable[[str], None]


class Measure(abc.ABC):
    """One or two figures with a common network.

    Attributes:
      metrics: the names of the figures.
      name: of what it wants to know of a clip.
      generated: makes that of a clip to judge.
      reference: makes that of a clip of the reference; None if it needs none.
    """

    metrics: tuple[str, ...]
    name: str
    generated: Extractor
    reference: Extractor | None = None

    @abc.abstractmethod
    def hear_reference(self, clip: str, value: np.ndarray) -> None:
        """Takes what the extractor made of a clip of the reference."""

    @abc.abstractmethod
    def hear(self, clip: str, value: np.ndarray) -> Scores:
        """Takes what the extractor made of a clip to judge, after the whole reference."""

    @abc.abstractmethod
    def figures(self, known: Known) -> dict[str, dict[str, Any] | UserError]:
        """The figures by metric, each in plain JSON types, or why there is none."""


def level_of(protocol: protocols.Protocol) -> Level:
    """What a protocol does to the level of generated clips."""
    target = protocol.loudness
    if target is None:
        return UNCHANGED

    def apply(wav: np.ndarray, sample_rate: int) -> np.ndarray:
        return normalize_audio(wav, sample_rate, "loudness", loudness_headroom_db=-target)

    return Level(f"{target:g} LUFS, clipped", apply)


def _level_words(level: Level) -> str:
    return "" if level is UNCHANGED else f"; generated clips first set to {level.key}"


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
        """How many clips of the reference have rows."""
        return self._known

    @property
    def target(self) -> Gaussian | None:
        """The reference's statistics, as soon as the whole reference was heard; None if too few."""
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
            "definition": self.embedding.definition + _level_words(self._level),
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
                f"fad: {own.count} rows for {dim} dimensions: the covariance is incomplete and the "
                "distance mostly bias"
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


class Divergence(Measure):
    """`kld`: how far the labels that PaSST hears in two clips of a pair are apart."""

    metrics, name = ("kld",), "kld"

    def __init__(self, passt: Passt, protocol: protocols.Protocol):
        self.passt, self.protocol, self.rule = passt, protocol, passt.rule
        self._level, self._weights = level_of(protocol), passt.weights
        key = f"{passt.name}\n{self._weights}\n{passt.definition}"
        self.generated = Extractor(key, passt.probabilities, self._level)
        self.reference = Extractor(key, passt.probabilities)
        self._theirs: dict[str, np.ndarray] = {}
        self._forth: list[tuple[float, int]] = []  # of each pair, with its pieces
        self._back: list[tuple[float, int]] = []

    def hear_reference(self, clip: str, value: np.ndarray) -> None:
        """See `Measure`."""
        self._theirs[clip] = value

    def hear(self, clip: str, value: np.ndarray) -> Scores:
        """See `Measure`."""
        if clip not in self._theirs:
            return {}
        count = min(len(value), len(self._theirs[clip]))
        real, made = self._theirs.pop(clip)[:count], value[:count]
        p, q = (real, made) if self.rule.reference_first else (made, real)
        forth = kl_divergence(p, q)
        self._forth.append((forth, count))
        self._back.append((kl_divergence(q, p), count))
        return {"kld": forth}

    def figures(self, known: Known) -> dict[str, dict[str, Any] | UserError]:
        """See `Measure`."""
        if not self._forth:
            return {"kld": UserError(_NO_PAIRS)}
        seconds = self.passt.network.config.seconds
        if seconds != self.rule.seconds:
            known.warn(
                f"kld: {self.protocol.name} measures with PaSST's {self.rule.seconds} s model, and "
                f"this is the {seconds} s one"
            )
        way = ("reference || generated", "generated || reference")
        result = {
            "value": _weighted(self._forth),
            "value_other_way": _weighted(self._back),
            "direction": f"KL({way[not self.rule.reference_first]})",
            "protocol": self.protocol.name,
            "embedding": self.passt.name,
            "weights": self._weights,
            "clips": len(self._forth),
            "rows": sum(count for _, count in self._forth),
            "pairs": len(self._forth),
            "pieces": sum(count for _, count in self._forth),
            "reference": known.reference,
            "definition": f"mean KL({way[not self.rule.reference_first]}) over rows, in nats, 1e-6 "
            f"added to the second; {self.passt.definition}{_level_words(self._level)}",
        }
        return {"kld": result}


class Chroma(Measure):
    """`chroma`: in how many frames two clips of a pair have the same loudest pitch class."""

    metrics, name = ("chroma",), "chroma"

    def __init__(self, protocol: protocols.Protocol):
        self.protocol = protocol
        self._level = level_of(protocol)
        self.generated = Extractor("loudest pitch classes", loudest_classes, self._level)
        self.reference = Extractor("loudest pitch classes", loudest_classes)
        self._theirs: dict[str, np.ndarray] = {}
        self._pairs: list[tuple[int, int]] = []

    def hear_reference(self, clip: str, value: np.ndarray) -> None:
        """See `Measure`."""
        self._theirs[clip] = value

    def hear(self, clip: str, value: np.ndarray) -> Scores:
        """See `Measure`."""
        if clip not in self._theirs:
            return {}
        same, frames = agreement(value, self._theirs.pop(clip))
        self._pairs.append((same, frames))
        return {"chroma": same / frames}

    def figures(self, known: Known) -> dict[str, dict[str, Any] | UserError]:
        """See `Measure`."""
        if not self._pairs:
            return {"chroma": UserError(_NO_PAIRS)}
        same, frames = (sum(column) for column in zip(*self._pairs, strict=True))
        result = {
            "value": same / frames,
            "protocol": self.protocol.name,
            "embedding": "chroma",
            "weights": None,
            "clips": len(self._pairs),
            "rows": frames,
            "pairs": len(self._pairs),
            "frames": frames,
            "reference": known.reference,
            "definition": "share of frames with the same loudest of 12 pitch classes; mono at 32 "
            "kHz (julius resampling), window 16384, hop 4096, librosa's filters, silence counts as "
            f"C{_level_words(self._level)}",
        }
        return {"chroma": result}


class TextConsistency(Measure):
    """`clap`: the cosine between a clip and its caption.

    Args:
      clap: places clips and captions.
      captions: {id of a clip: caption}.
      protocol: of the figure.
      cache: a folder for the captions' rows, or None.
    """

    metrics, name = ("clap",), "clap"

    def __init__(
        self,
        clap: TextEmbedding,
        captions: Mapping[str, str],
        protocol: protocols.Protocol,
        cache: Path | None = None,
    ):
        self.clap, self.captions, self.protocol = clap, captions, protocol
        self._level, self._weights = level_of(protocol), clap.weights
        key = f"{clap.name}\n{self._weights}\n{clap.definition}"
        self.generated = Extractor(key, clap.embed, self._level)
        self._texts, self._cache = key, cache
        self._order, self._read = list(captions), {}
        self._scores: list[float] = []

    def hear_reference(self, clip: str, value: np.ndarray) -> None:
        """See `Measure`; it takes none."""

    def hear(self, clip: str, value: np.ndarray) -> Scores:
        """See `Measure`; of several rows it takes the direction of their mean."""
        if clip not in self.captions:
            return {}
        heard = np.asarray(value, np.float64).mean(axis=0)
        read = np.asarray(self._caption(clip), np.float64)
        norms = np.linalg.norm(heard) * np.linalg.norm(read)
        self._scores.append(float(heard @ read / max(norms, 1e-8)))
        return {"clap": self._scores[-1]}

    def _caption(self, clip: str) -> np.ndarray:
        """The row of a clip's caption; the next ones are read with it, for they come next."""
        if clip not in self._read:
            start = self._order.index(clip)
            names = self._order[start : start + _TEXTS]
            texts = [self.captions[name] for name in names]
            rows = cached(
                self._cache,
                "\n".join((self._texts, *map(repr, texts))),
                lambda: self.clap.embed_text(texts),
            )
            self._read = dict(zip(names, rows, strict=True))
        return self._read[clip]

    def figures(self, known: Known) -> dict[str, dict[str, Any] | UserError]:
        """See `Measure`."""
        if not self._scores:
            return {"clap": UserError("no clip has a caption of its name")}
        result = {
            "value": float(np.mean(self._scores)),
            "protocol": self.protocol.name,
            "embedding": self.clap.name,
            "weights": self._weights,
            "clips": len(self._scores),
            "rows": len(self._scores),
            "pairs": len(self._scores),
            "reference": "captions",
            "definition": "mean cosine between a clip and its caption; "
            f"{self.clap.definition}{_level_words(self._level)}",
        }
        return {"clap": result}


_NO_PAIRS = "no clip of one folder has the name of a clip of the other"


def _weighted(values: list[tuple[float, int]]) -> float:
    return sum(value * count for value, count in values) / sum(count for _, count in values)
