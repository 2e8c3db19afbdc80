"""Which file a segment is from, and where in it it begins.

Both are drawn by the rules of audiocraft's `AudioDataset` (data/audio_dataset.py).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from musicgen_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How segments are drawn; by default as audiocraft trains codecs (solver/default.yaml).

    Attributes:
      sample_on_duration: longer files more often; else each file as often as the others.
      sample_on_weight: files by the weight in the manifest, where it has one.
      min_segment_ratio: at least this share of a segment is music, if the file is long enough. The
        rest, behind the end of the file, is padding.
    """

    sample_on_duration: bool = True
    sample_on_weight: bool = True
    min_segment_ratio: float = 0.5

    def __post_init__(self) -> None:
        ratio = self.min_segment_ratio
        if not isinstance(ratio, int | float) or not 0 <= ratio <= 100:  # nor NaN
            raise UserError(f"min_segment_ratio must be a number from 0 to 100, got {ratio!r}")


# As audiocraft trains MusicGen (solver/musicgen): a lower ratio taught it to fall silent.
MUSICGEN_SAMPLING = SamplingConfig(False, False, 0.8)


def cumulative(
    durations: Sequence[float], weights: Sequence[float | None], config: SamplingConfig
) -> np.ndarray:
    """The probability that one of the first n files is drawn, for n from 1: float64 [N].

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
    """A file and a place in it.

    Args:
      rng: gives two numbers, whatever comes out.
      probabilities: of `cumulative`.
      lengths: of the files, in the unit of `segment`.
      segment: how long the segment will be.
      config: of the sampling.

    Returns:
      the file's index, and the place: at least 0 and before the end of the file.
    """
    index = int(np.searchsorted(probabilities, rng.random(), side="right"))
    latest = max(0.0, float(lengths[index]) - segment * config.min_segment_ratio)
    return index, rng.random() * latest
