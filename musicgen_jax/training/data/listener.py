"""What a melody model hears of whole clips, close enough together to cut any segment from it."""

import math

import numpy as np

from musicgen_jax.conditioning.chroma import HOP, WINDOW, loudest_pitches
from musicgen_jax.conditioning.melody import SEPARATOR, find_separator, melody_of, separator_at_hand
from musicgen_jax.errors import UserError

_AT_ONCE = 256  # windows: 16 MB of samples, and as much again of their spectra
_MAX_PLACES = 64


class Listener:
    """Hears the melody of a clip at places that are as far apart as frames of codes allow.

    A segment may begin at any frame of codes; its chroma has a frame every `HOP` samples from there
    on, see `chroma_grid`. All of these lie on a grid of the greatest common divisor of `HOP` and
    the codec's hop: 128 samples, five to a frame, for the official models. audiocraft's cache of
    whole clips has one frame every `HOP` samples and takes those that come just before a segment's
    own.

    A separator hears the clip whole, as for that cache: of a segment alone it makes slightly other
    stems, which audiocraft without its cache listens to.

    Only the loudest pitch class is kept, since the conditioners of all MusicGens take `argmax`.

    Args:
      sample_rate: in Hz, of the model.
      hop_length: samples of a frame of codes.
      bins: pitch classes that the model hears.
      separate: see `musicgen_jax.conditioning.melody.find_separator`.

    Attributes:
      settings: what the melodies mean, plain JSON types.
      line: says what is listened to.

    Raises:
      UserError: no grid that fits the codec is coarse enough, there are too many pitch classes, or
        no separator though `separate` asks for one.
    """

    def __init__(self, sample_rate: int, hop_length: int, bins: int, separate: bool | None):
        self._apart = math.gcd(hop_length, HOP)
        self._places = hop_length // self._apart
        if self._places > _MAX_PLACES or bins > 256:
            raise UserError(
                f"melodies of {bins} pitch classes every {HOP} samples cannot be kept beside codes "
                f"of {hop_length}: {self._places} to a frame, at most {_MAX_PLACES} and 256 classes"
            )
        separated = separator_at_hand() if separate is None else separate
        self._separator = find_separator(separated)
        self._rate, self._bins = sample_rate, bins
        self.settings = {
            "chroma_bins": bins,
            "chroma_hop": HOP,
            "chroma_window": WINDOW,
            "chroma_places": self._places,
            "chroma_separated": separated,
        }
        if separated:
            self.line = f"melodies: without drums and bass, by {SEPARATOR}"
        elif separate is None:
            self.line = f"melodies: of all instruments, no separator {SEPARATOR} is at hand"
        else:
            self.line = "melodies: of all instruments"

    def __call__(self, audio: np.ndarray, frames: int) -> np.ndarray:
        """The loudest pitch classes, uint8 [frames, places].

        The windows before the beginning hear it mirrored, as those of a melody do, and those behind
        the end hear silence, as if the segment had been padded.

        Args:
          audio: float32 [C, W] at the model's rate.
          frames: of codes that are stored of it, the silence behind it among them.
        """
        mono = melody_of(audio, self._rate, self._separator)[: audio.shape[1]]
        count = frames * self._places
        room = -(-count // _AT_ONCE) * _AT_ONCE * self._apart + WINDOW
        mono = np.pad(mono, (0, max(0, room - len(mono))))
        mono = np.pad(mono, (WINDOW // 2, 0), mode="reflect").astype(np.float32)
        span = (_AT_ONCE - 1) * self._apart + WINDOW
        heard = [
            loudest_pitches(
                mono[first * self._apart :][:span],
                sample_rate=self._rate,
                hop=self._apart,
                num_chroma=self._bins,
            )
            for first in range(0, count, _AT_ONCE)
        ]
        return np.concatenate(heard)[:count].reshape(frames, self._places)
