"""Which file, from where, and in which order: all of it from (seed, step, row).

Files and places are drawn by the rules of audiocraft's `AudioDataset` (data/audio_dataset.py). The
order has no state: row i of step s has a generator of its own, so training goes on at any step, on
any number of hosts, with the examples that it would have had.
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


def item_rng(seed: int, step: int, item: int) -> np.random.Generator:
    """The generator of one row of the global batch of a step.

    Args:
      seed: of the training, from 0.
      step: from 0.
      item: the row, from 0.
    """
    # A spawn key, unlike a tuple as the seed, keeps (1, 2) apart from (1, 2, 0).
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step, item)))


def host_rows(batch_size: int, process_index: int = 0, process_count: int = 1) -> range:
    """The rows of the global batch that one of several processes makes.

    Raises:
      UserError: the batch does not part evenly.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size must be a multiple of the {process_count} processes, got {batch_size}"
        )
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)
