"""Measures of pairs: `kld` and `chroma` of two clips, `clap` of a clip and its caption."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import protocols
from musicgen_jax.metrics.chroma import agreement, loudest_classes
from musicgen_jax.metrics.clap_pairs import pair_cosines
from musicgen_jax.metrics.divergence import kl_divergence
from musicgen_jax.metrics.features import Extractor, cached
from musicgen_jax.metrics.measures import (
    Known,
    Measure,
    Scores,
    TextEmbedding,
    level_of,
    level_words,
)
from musicgen_jax.metrics.passt import Passt

_TEXTS = 8  # captions at once
_NO_PAIRS = "no clip of one folder has the name of a clip of the other"


class Divergence(Measure):
    """`kld`: the divergence between the labels that PaSST hears in two clips of a pair."""

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
            f"added to the second; {self.passt.definition}{level_words(self._level)}",
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
            f"C{level_words(self._level)}",
        }
        return {"chroma": result}


class TextConsistency(Measure):
    """`clap`: the cosine between a clip and its caption.

    Args:
      clap: the network, which embeds clips and captions.
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
        self._used: list[str] = []

    def hear_reference(self, clip: str, value: np.ndarray) -> None:
        """See `Measure`; it takes none."""

    def hear(self, clip: str, value: np.ndarray) -> Scores:
        """See `Measure`; if there are several rows, it takes the direction of their mean."""
        if clip not in self.captions:
            return {}
        heard, read = value.mean(axis=0, keepdims=True), self._caption(clip)[None]
        self._scores.append(float(pair_cosines(heard, read)[0]))
        self._used.append(clip)
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
        texts = [self.captions[clip] for clip in self._used]
        cut = self.clap.cut(texts)
        if cut:
            known.warn(
                f"clap: {cut} of {len(texts)} captions are too long: their ends are not read"
            )
        pairs = "".join(f"{name}\0{text}\n" for name, text in zip(self._used, texts, strict=True))
        result = {
            "value": float(np.mean(self._scores)),
            "protocol": self.protocol.name,
            "embedding": self.clap.name,
            "weights": self._weights,
            "clips": len(self._scores),
            "rows": len(self._scores),
            "pairs": len(self._scores),
            "captions_cut": cut,
            "reference": hashlib.sha256(pairs.encode("utf-8", "surrogateescape")).hexdigest(),
            "definition": "mean cosine between a clip and its caption; "
            f"{self.clap.definition}{level_words(self._level)}",
        }
        return {"clap": result}


def _weighted(values: list[tuple[float, int]]) -> float:
    return sum(value * count for value, count in values) / sum(count for _, count in values)
