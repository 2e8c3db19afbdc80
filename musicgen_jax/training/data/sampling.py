"""Draws the file of a segment and the position in it.

The rules are those of audiocraft's `AudioDataset` (data/audio_dataset.py).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from musicgen_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to draw segments (default: as audiocraft trains codecs, solver/default.yaml).

    Attributes:
      sample_on_duration: whether the probability of a file is proportional to its duration.
      sample_on_weight: whether it is proportional to its weight in the manifest, if it has one.
      min_segment_ratio: the least share of a segment that is music, if the file is long enough. The
        rest, after the end of the file, is padding.
    """

    sample_on_duration: bool = True
    sample_on_weight: bool = True
    min_segment_ratio: float = 0.5

    def __post_init__(self) -> None:
        ratio = self.min_segment_ratio
        if not isinstance(ratio, int | float) or not 0 <= ratio <= 100:  # also rejects NaN
            raise UserError(f"min_segment_ratio must be a number from 0 to 100, got {ratio!r}")


# As audiocraft trains MusicGen (solver/musicgen). A lower ratio taught the model to fall silent.
MUSICGEN_SAMPLING = SamplingConfig(False, False, 0.8)


def cumulative(
    durations: Sequence[float], weights: Sequence[float | None], config: SamplingConfig
) -> np.ndarray:
    """Cumulative probabilities, float64 [N]: entry n - 1 covers the first n files.

    Raises:
      UserError: every file has weight 0.
    """
    scores = np.ones(len(durations))
    if config.sample_on_weight:
        scores *= [1.0 if weight is None else weight for weight in weights]
    if config.sample_on_duration:
        scores *= durations
    total = np.cumsum(scores)
    if not total[-1] > 0:
        raise UserError("every file has weight 0: nothing can be drawn")
    return total / total[-1]


def draw(
    rng: np.random.Generator,
    probabilities: np.ndarray,
    lengths: Sequence[float] | np.ndarray,
    segment: float,
    config: SamplingConfig,
) -> tuple[int, float]:
    """Draws a file and a position in it.

    Args:
      rng: always draws exactly two numbers.
      probabilities: from `cumulative`.
      lengths: of the files, in the unit of `segment`.
      segment: length of the segment.
      config: of the sampling.

    Returns:
      the index of the file, and the position: at least 0 and before the end of the file.
    """
    index = int(np.searchsorted(probabilities, rng.random(), side="right"))
    latest = max(0.0, float(lengths[index]) - segment * config.min_segment_ratio)
    return index, rng.random() * latest
