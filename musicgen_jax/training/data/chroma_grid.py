"""Cuts the chroma of a segment from the stored pitch classes of a whole clip."""

import dataclasses
from typing import Annotated

import numpy as np

from musicgen_jax.config.schema import Between, Size

_SILENCE = 0  # the pitch class of silence, see `musicgen_jax.conditioning.chroma`
_MAX_PLACES = 1 << 12
_MAX_WINDOW = 1 << 20


@dataclasses.dataclass(frozen=True)
class ChromaGrid:
    """The layout of the stored pitch classes: the loudest one at several places per code frame.

    The places are dense enough for exact chroma frames: starting from any code frame, every chroma
    hop lands exactly on a place. So a segment has the chroma of its own audio, except in the first
    two and last two windows, which cross its borders. These windows see the music of the clip
    around the segment, as with audiocraft's cache of whole clips. Without the cache, audiocraft
    mirrors the segment there. A segment shorter than one window also continues with the music of
    the clip; audiocraft centres it in silence.

    After the end of a clip, the melody is that of silence, as in generation with a melody that ends
    in silence. audiocraft blanks it in training. The stored pitch classes extend one second beyond
    the end. At sample rates below 8192 Hz, half a window is longer than that second, so the later
    windows that still reach the end of the clip are missing.

    Attributes:
      bins: number of pitch classes.
      hop: samples between chroma frames.
      window: samples per chroma window.
      places: places per code frame.
      hop_length: samples per code frame.
      separated: whether a separator removed drums and bass.
    """

    bins: Annotated[int, Between(1, 256)]
    hop: Annotated[int, Between(1, _MAX_WINDOW)]
    window: Annotated[int, Between(1, _MAX_WINDOW)]
    places: Annotated[int, Between(1, _MAX_PLACES)]
    hop_length: Size
    separated: bool = False

    def __post_init__(self) -> None:
        apart, rest = divmod(self.hop_length, self.places)
        if rest or self.hop % apart:
            raise ValueError("the melodies do not fit the codes")

    def cut(self, stored: np.ndarray, start: int, frames: int) -> np.ndarray:
        """The pitch classes of a segment.

        Args:
          stored: uint8 [T, places], of the clip and the silence after it.
          start: first code frame of the segment.
          frames: number of code frames of the segment.

        Returns:
          uint8 [T'], where T' is the number of chroma frames of audio of that length.
        """
        length = max(frames * self.hop_length, self.window) // self.hop + 1
        step = self.hop * self.places // self.hop_length
        at = start * self.places + step * np.arange(length)
        at = at[at < stored.size]
        pitches = np.full(length, _SILENCE, np.uint8)
        pitches[: len(at)] = stored.reshape(-1)[at]
        return pitches
