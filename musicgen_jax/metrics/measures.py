"""Measures, which are fed clip by clip: first the reference, then the clips to judge.

A measure says which features of a clip it needs (`Extractor`s), takes those, scores single clips if
it can, and gives its figures at the end. Per clip it keeps nothing, or a few kilobytes if clips are
compared in pairs.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from musicgen_jax.audio import normalize_audio
from musicgen_jax.errors import UserError
from musicgen_jax.metrics import protocols
from musicgen_jax.metrics.features import UNCHANGED, Extractor, Level

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
    """An embedding that also places texts in the space of the clips."""

    def embed_text(self, texts: list[str]) -> np.ndarray:
        """Rows of N texts, float32 [N, D]."""
        ...

    def cut(self, texts: list[str]) -> int:
        """The number of texts that are too long for it, so that their ends do not count."""
        ...


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known about the sets when figures are made.

    Attributes:
      reference: SHA-256 that identifies the reference.
      warn: takes a warning for the report.
    """

    reference: str
    warn: Callable[[str], None]


class Measure(abc.ABC):
    """One or two figures with a common network.

    Attributes:
      metrics: the names of the figures.
      name: name of the feature that it needs.
      generated: extracts the feature of a clip to judge.
      reference: extracts the feature of a clip of the reference; None if it needs none.
    """

    metrics: tuple[str, ...]
    name: str
    generated: Extractor
    reference: Extractor | None = None

    @abc.abstractmethod
    def hear_reference(self, clip: str, value: np.ndarray) -> None:
        """Takes the extracted feature of a clip of the reference."""

    @abc.abstractmethod
    def hear(self, clip: str, value: np.ndarray) -> Scores:
        """Takes the extracted feature of a clip to judge, after the whole reference."""

    @abc.abstractmethod
    def figures(self, known: Known) -> dict[str, dict[str, Any] | UserError]:
        """The figures by metric, each in plain JSON types, or why there is none."""


def level_of(protocol: protocols.Protocol) -> Level:
    """How a protocol changes the level of generated clips."""
    target = protocol.loudness
    if target is None:
        return UNCHANGED

    def apply(wav: np.ndarray, sample_rate: int) -> np.ndarray:
        return normalize_audio(wav, sample_rate, "loudness", loudness_headroom_db=-target)

    return Level(f"{target:g} LUFS, clipped", apply)


def level_words(level: Level) -> str:
    """The level of generated clips, as the end of a definition."""
    return "" if level is UNCHANGED else f"; generated clips first set to {level.key}"
