"""A melody on its way to the language model: any audio, cut to what is heard, separated perhaps.

Every clip is heard for itself. audiocraft pads the melodies of a batch to the longest one first, so
that there a short one is followed by near-silence; here it repeats, as it does there alone.
"""

import functools
import logging
from collections.abc import Sequence

import jax
import numpy as np

from musicgen_jax import arguments
from musicgen_jax.audio import convert_audio, convert_channels, resample
from musicgen_jax.conditioning.chroma import frame_count, melody_chroma, samples_heard, window_at
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError
from musicgen_jax.hub import models_home

SEPARATOR = "htdemucs"
NOT_SEPARATED = (
    f"no separator {SEPARATOR} at hand: the melody is heard with its drums and bass "
    "(`musicgen-jax convert` makes one; separate=False or --no-separate says that this is meant)"
)
Audio = np.ndarray | jax.Array
_MARGIN = 1.0  # seconds of a long melody beyond what is heard, for the resampler's edges


class Melodies:
    """The melodies of a batch, as the language model hears them in each window of a piece.

    Of long audio only as much is looked at as the windows need: `duration` and one window more.

    Args:
      clips: per item float [C, W] at `sample_rate`, checked, or None for no melody.
      sample_rate: in Hz.
      config: of the model.
      duration: seconds of the piece. A longer one than the model sees at once is generated window
        by window, and then the melody moves on with the windows.
      separate: True: vocals and what is neither drums nor bass, by the separator `htdemucs`;
        False: all of it; None: separated if the separator is at hand.
    """

    def __init__(
        self,
        clips: Sequence[np.ndarray | None],
        sample_rate: int,
        *,
        config: MusicGenConfig,
        duration: float,
        separate: bool | None,
    ):
        self.num_frames = chroma_frames(config)
        self._config, self._rate, self._separate = config, sample_rate, separate
        self._clips = list(clips)
        self._given = np.array([clip is not None for clip in clips])
        self._moves_on = duration > config.max_duration
        if self._moves_on:
            self._seconds = duration + config.max_duration
        else:
            self._seconds = samples_heard(self.num_frames) / config.sample_rate

    def __len__(self) -> int:
        return len(self._clips)

    def chroma_at(self, offset: float) -> tuple[np.ndarray, np.ndarray]:
        """What is heard in the window that begins `offset` seconds into the piece.

        Returns:
          float32 [B, T, bins], one-hot, zeros where there is no melody; bool [B], where there is
          one. B is the number of clips.
        """
        config = self._config
        bins = config.lm.chroma_bins
        chroma = np.zeros((len(self._clips), self.num_frames, bins), np.float32)
        for row, wav in zip(chroma, self._heard, strict=True):
            if wav is None:
                continue
            if self._moves_on:
                wav = window_at(
                    wav, offset, sample_rate=config.sample_rate, seconds=config.max_duration
                )
            row[:] = melody_chroma(
                wav, sample_rate=config.sample_rate, num_frames=self.num_frames, num_chroma=bins
            )
        return chroma, self._given

    @functools.cached_property
    def _heard(self) -> list[np.ndarray | None]:
        """Mono at the model's rate; made when first needed, when all arguments are checked."""
        heard = []
        separator = find_separator(self._separate) if self._given.any() else None
        for clip in self._clips:
            if clip is None:
                heard.append(None)
                continue
            clip = clip[:, : int((self._seconds + _MARGIN) * self._rate)]
            to = self._config.sample_rate, self._config.audio_channels
            heard.append(melody_of(convert_audio(clip, self._rate, *to), to[0], separator))
        return heard


def chroma_frames(config: MusicGenConfig) -> int:
    """T, the frames of melody that stand in front of the tokens: 235 at 30 s and 32 kHz."""
    return frame_count(int(config.max_duration * config.sample_rate))


def check_melodies(
    melody: Audio | Sequence[Audio | None], sample_rate: int, *, seconds: float
) -> list[np.ndarray | None]:
    """One checked clip, float32 [C, W], or None per item.

    Args:
      melody: float [C, W], [B, C, W], or a list with one array [C, W] or None per item.
      sample_rate: in Hz.
      seconds: what lies beyond is not looked at.
    """
    if not arguments.is_number(sample_rate) or sample_rate < 1:
        raise UserError(f"the sample rate must be a positive integer in Hz, got {sample_rate!r}")
    most = int((seconds + _MARGIN) * sample_rate)

    def check(audio, dimensions: int) -> np.ndarray:
        try:
            audio = np.asarray(audio)
        except ValueError:
            audio = np.empty(0)
        if audio.ndim > dimensions or audio.ndim < 2:
            raise UserError(
                "the melody must be float [C, W], [B, C, W], or a list with one array [C, W] or "
                f"None per clip, got the shape {list(audio.shape)}"
            )
        return arguments.check_audio(audio[..., :most], sample_rate, "melody")

    if isinstance(melody, list | tuple):
        if not melody:
            raise UserError("the list of melodies is empty: give one array or None per clip")
        return [None if audio is None else check(audio, 2)[0] for audio in melody]
    return list(check(melody, 3))


# --- The separator ----------------------------------------------------------------------------


def separator_at_hand() -> bool:
    """Whether a converted separator lies where models are kept."""
    return (models_home() / SEPARATOR).is_dir()


def melody_of(audio: np.ndarray, sample_rate: int, separator) -> np.ndarray:
    """What is listened to of audio float32 [C, W]: its stems of melody, or all of it; mono [W'].

    Args:
      audio: at the model's rate, of its channels.
      sample_rate: in Hz.
      separator: of `find_separator`. Resampling to its rate and back may cost or add a sample.
    """
    mono = convert_channels(audio, 1)
    if separator is not None and mono.shape[1] > 1:
        stems, rate = separator.melody(mono, sample_rate)
        mono = resample(convert_channels(stems, 1), rate, sample_rate)
    return mono[0]


def find_separator(separate: bool | None):
    """The separator, or None if the melody is heard as it is.

    Nothing is downloaded. With None and no separator at hand the logger `musicgen_jax` says once
    in a process that the melody is not separated.

    Raises:
      UserError: `separate` is True and there is no separator, or it is none of True, False, None.
    """
    if separate not in (True, False, None):
        raise UserError(f"separate must be True, False or None, got {separate!r}")
    if separate is False:
        return None
    if separate is None and not separator_at_hand():
        _say_not_separated()
        return None
    return _load_separator(str(models_home()))


@functools.lru_cache(maxsize=1)
def _load_separator(home: str):
    from musicgen_jax.separation import Separator

    return Separator.from_pretrained(SEPARATOR)


@functools.cache
def _say_not_separated() -> None:
    logging.getLogger("musicgen_jax").warning(NOT_SEPARATED)
