"""Encoded pieces as training examples: codes of a stretch of music and words for it."""

import dataclasses
from pathlib import Path

import numpy as np

from musicgen_jax.nano import captions, composer


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Codes of composed pieces and the seeds that they were composed from."""

    codes: np.ndarray  # int16 [N, K, T]
    seeds: np.ndarray  # int64 [N]

    @staticmethod
    def load(path: Path) -> "Pieces":
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            return Pieces(arrays["codes"], arrays["seeds"])

    def save(self, path: Path) -> None:
        """Writes an npz file, aside first."""
        aside = path.with_suffix(".partial.npz")
        np.savez(aside, codes=self.codes, seeds=self.seeds)
        aside.replace(path)

    def segment(self, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, str]:
        """A stretch that starts where a phrase starts, and a fresh caption.

        Args:
          rng: draws the piece, the phrase and the words.
          frames: length of the stretch, at most T.

        Returns:
          codes [K, frames] and the caption.
        """
        index = int(rng.integers(len(self.codes)))
        spec = spec_of(int(self.seeds[index]))
        bar = composer.EIGHTHS_PER_BAR[spec.metre] * spec.frames_per_eighth
        starts = range(0, self.codes.shape[2] - frames + 1, 4 * bar)
        start = int(rng.choice(starts))
        return self.codes[index, :, start : start + frames], captions.caption(spec, rng)


def spec_of(seed: int) -> composer.PieceSpec:
    """What the piece of a seed is like."""
    return composer.sample_spec(np.random.default_rng(seed))
