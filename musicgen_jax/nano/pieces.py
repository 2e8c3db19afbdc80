"""Composed pieces: their sound, their codes and the training examples cut from the codes."""

import dataclasses
from pathlib import Path

import numpy as np

from musicgen_jax import files
from musicgen_jax.nano import captions, composer, synth
from musicgen_jax.nano.places import places

CLIP_FRAMES = 30 * composer.FRAME_RATE


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Codes of composed pieces and the seeds of the pieces."""

    codes: np.ndarray  # int16 [N, K, T]
    seeds: np.ndarray  # int64 [N]

    @staticmethod
    def load(path: Path) -> "Pieces":
        """Reads a file that `save` wrote."""
        with np.load(path) as arrays:
            return Pieces(arrays["codes"], arrays["seeds"])

    def save(self, path: Path) -> None:
        """Writes an npz file."""
        with files.new_file(path) as file:
            np.savez(file, codes=self.codes, seeds=self.seeds)


@dataclasses.dataclass(frozen=True)
class Library:
    """Pieces of several lengths, as a source of training examples."""

    shelves: tuple[Pieces, ...]

    def segment_with_labels(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, np.ndarray]:
        """Draws a segment that starts with a phrase, a new caption and labels of its frames.

        Args:
          rng: draws the piece, the phrase and the words.
          frames: length of the segment; only pieces of at least this length are drawn.

        Returns:
          codes [K, frames], the caption and labels [6, frames]; see `places`.

        Raises:
          ValueError: no piece has that many frames.
        """
        shelves = [shelf for shelf in self.shelves if shelf.codes.shape[2] >= frames]
        if not shelves:
            raise ValueError(f"no piece has {frames} frames")
        counts = np.array([len(shelf.codes) for shelf in shelves])
        shelf = shelves[rng.choice(len(shelves), p=counts / counts.sum())]
        index = int(rng.integers(len(shelf.codes)))
        own = np.random.default_rng(int(shelf.seeds[index]))
        spec = composer.sample_spec(own)
        chords = composer.draw_chords(spec, own)
        bar = composer.EIGHTHS_PER_BAR[spec.metre] * spec.frames_per_eighth
        starts = range(0, shelf.codes.shape[2] - frames + 1, 4 * bar)
        start = int(rng.choice(starts))
        codes = shelf.codes[index, :, start : start + frames]
        caption = captions.training_caption(spec, rng)
        return codes, caption, places(spec, chords, start, frames)


def piece(seed: int, num_frames: int = CLIP_FRAMES) -> tuple[composer.PieceSpec, np.ndarray]:
    """The spec of the piece of a seed, and its sound float32 [num_frames * hop]."""
    rng = np.random.default_rng(seed)
    spec = composer.sample_spec(rng)
    return spec, synth.render(composer.compose(spec, rng, num_frames), num_frames)


def spec_of(seed: int) -> composer.PieceSpec:
    """The spec of the piece of a seed."""
    return composer.sample_spec(np.random.default_rng(seed))
