"""Extracts the melody of whole clips, densely enough to cut the melody of any segment."""

import math

import numpy as np

from musicgen_jax.conditioning.chroma import loudest_pitches
from musicgen_jax.conditioning.melody import SEPARATOR, find_separator, melody_of, separator_at_hand
from musicgen_jax.config import LMConfig
from musicgen_jax.errors import UserError

_AT_ONCE = 256  # windows per batch: 16 MB of samples, and the same again for their spectra
_MAX_PLACES = 64


class Listener:
    """Extracts the melody of a clip on the coarsest grid that fits all segments.

    A segment may begin at any code frame, and its chroma has a frame every hop from there; see
    `chroma_grid`. All chroma frames lie on a grid whose step is the greatest common divisor of the
    chroma's hop and the codec's. For the official models that is 128 samples, or five places per
    code frame. audiocraft's cache of whole clips has one frame every hop, and a segment takes the
    cached frames just before its own.

    The separator processes the whole clip, as for audiocraft's cache. On a segment alone it makes
    slightly different stems; audiocraft without its cache uses those.

    Only the loudest pitch class is stored, because the conditioners of all MusicGens take `argmax`.

    Args:
      sample_rate: of the model, in Hz.
      hop_length: samples per code frame.
      melody: number of pitch classes, window and hop of the model's chroma.
      separate: whether to remove drums and bass with a separator (default: if it is installed).

    Attributes:
      settings: the settings that define the melodies, plain JSON types.
      line: a line for the log that describes the melodies.

    Raises:
      UserError: the grid for this codec is too fine, there are too many pitch classes, or
        `separate` is True and no separator is installed.
    """

    def __init__(self, sample_rate: int, hop_length: int, melody: LMConfig, separate: bool | None):
        bins, hop, self._window = melody.chroma_bins, melody.chroma_hop, melody.chroma_window
        self._apart = math.gcd(hop_length, hop)
        self._places = hop_length // self._apart
        if self._places > _MAX_PLACES or bins > 256:
            raise UserError(
                f"melodies of {bins} pitch classes every {hop} samples cannot be stored next to "
                f"codes of {hop_length}: {self._places} to a frame, at most {_MAX_PLACES} and "
                f"256 classes"
            )
        separated = separator_at_hand() if separate is None else separate
        self._separator = find_separator(separated)
        self._rate, self._bins = sample_rate, bins
        self.settings = {
            "chroma_bins": bins,
            "chroma_hop": hop,
            "chroma_window": self._window,
            "chroma_places": self._places,
            "chroma_separated": separated,
        }
        if separated:
            self.line = f"melodies: without drums and bass, by {SEPARATOR}"
        elif separate is None:
            self.line = f"melodies: of all instruments, since no separator {SEPARATOR} is installed"
        else:
            self.line = "melodies: of all instruments"

    def __call__(self, audio: np.ndarray, frames: int) -> np.ndarray:
        """The loudest pitch classes, uint8 [frames, places].

        Windows that cross the start see the audio mirrored, as for a melody in generation. Windows
        that cross the end see silence, as if the segment had been padded.

        Args:
          audio: float32 [C, W] at the model's rate.
          frames: number of stored code frames, including the silence after the clip.
        """
        mono = melody_of(audio, self._rate, self._separator)[: audio.shape[1]]
        count = frames * self._places
        room = -(-count // _AT_ONCE) * _AT_ONCE * self._apart + self._window
        mono = np.pad(mono, (0, max(0, room - len(mono))))
        mono = np.pad(mono, (self._window // 2, 0), mode="reflect").astype(np.float32)
        span = (_AT_ONCE - 1) * self._apart + self._window
        heard = [
            loudest_pitches(
                mono[first * self._apart :][:span],
                sample_rate=self._rate,
                hop=self._apart,
                num_chroma=self._bins,
                window=self._window,
            )
            for first in range(0, count, _AT_ONCE)
        ]
        return np.concatenate(heard)[:count].reshape(frames, self._places)
