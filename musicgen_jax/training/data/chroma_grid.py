"""Which of the pitch classes that are stored of a whole clip are the chroma of a segment."""

import dataclasses
from typing import Annotated

import numpy as np

from musicgen_jax.config.schema import Between, Size

_SILENCE = 0  # the pitch class of silence, see `musicgen_jax.conditioning.chroma`
_MAX_PLACES = 1 << 12
_MAX_WINDOW = 1 << 20


@dataclasses.dataclass(frozen=True)
class ChromaGrid:
    """The loudest pitch classes of a clip, at places of each frame of codes.

    The places are so near each other that from any frame on those one hop of the chroma apart are
    among them: none is rounded. So a segment has the chroma of its own audio, but for the windows
    that reach over its borders, the first two and the last two. There the music of the clip goes
    on, as in audiocraft with its cache of whole clips; without the cache audiocraft mirrors the
    segment there. A segment shorter than one window, too, is followed by the clip's music;
    audiocraft centres it in silence.

    Behind the end of a clip is the melody of silence, as behind a melody that ends with silence
    when music is generated; audiocraft blanks it in training. What is stored reaches a second
    beyond the end; below 8192 Hz half a window is longer, and the end is heard for no longer.

    Attributes:
      bins: pitch classes.
      hop: samples from one frame of the chroma to the next.
      window: samples that a frame of the chroma hears.
      places: in a frame of codes.
      hop_length: samples of a frame of codes.
      separated: whether a separator took out drums and bass.
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
          stored: uint8 [T, places], of the clip and the silence behind it.
          start: the segment's first frame of codes.
          frames: how many frames of codes it has.

        Returns:
          uint8 [T'], T' what audio of so many frames of codes has.
        """
        length = max(frames * self.hop_length, self.window) // self.hop + 1
        step = self.hop * self.places // self.hop_length
        at = start * self.places + step * np.arange(length)
        at = at[at < stored.size]
        pitches = np.full(length, _SILENCE, np.uint8)
        pitches[: len(at)] = stored.reshape(-1)[at]
        return pitches
