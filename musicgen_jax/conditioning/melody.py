"""A melody on its way to the language model: any audio, cut to what is heard, separated perhaps.

Every clip is heard for itself. audiocraft pads the melodies of a batch to the longest one first, so
that there a short one is followed by near-silence; here it repeats, as it does there alone.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from musicgen_jax.audio import convert_audio, convert_channels, resample
from musicgen_jax.conditioning import arguments
from musicgen_jax.conditioning.arguments import Audio
from musicgen_jax.conditioning.chroma import frame_count, melody_chroma, samples_heard, window_at
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError, is_number
from musicgen_jax.generation.piece import (
    DEFAULT_DURATION,
    GenerationOutput,
    generate_piece,
    num_frames,
)
from musicgen_jax.nn.chroma_conditioner import ChromaConditioner
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.storage.hub import models_home

if TYPE_CHECKING:
    from musicgen_jax.model import MusicGen

SEPARATOR = "htdemucs"
NOT_SEPARATED = (
    f"no separator {SEPARATOR} at hand: the melody is heard with its drums and bass "
    "(`musicgen-jax convert` makes one; separate=False or --no-separate says that this is meant)"
)
_MARGIN = 1.0  # seconds of a long melody beyond what is heard, for the resampler's edges


def generate_with_chroma(
    model: "MusicGen",
    descriptions: Sequence[str | None],
    melody: Audio | Sequence[Audio | None],
    melody_sample_rate: int,
    *,
    separate: bool | None = None,
    duration: float = DEFAULT_DURATION,
    **settings,
) -> GenerationOutput:
    """Generates music that follows the melody of given audio, and a description.

    Of the audio only its chroma is used: which of the twelve pitch classes is the loudest, at
    235 moments of the 30 s that an official model sees at once. A shorter melody repeats, of a
    longer one the beginning counts; in a piece longer than `max_duration` the melody moves on
    with the windows, and wraps. What is not needed is not looked at: hours of audio cost no
    more than the beginning. Silence is a melody of C, which is also what stands for none.

    Args:
      model: a melody model.
      descriptions: B texts; None or "" asks for music without a description.
      melody: float [C, W] or [1, C, W] for all clips, [B, C, W], or a list with one array
        [C, W] or None (no melody) per clip; of any length. Clips do not touch each other.
      melody_sample_rate: samples per second of `melody`, any.
      separate: True: take drums and bass away first, as the original does, with the converted
        separator `htdemucs`; False: hear the audio as it is; None: separate if that separator
        is at hand, else say so once through the logger `musicgen_jax`.
      duration: seconds, as in `generate`.
      **settings: the other keyword arguments of `generate`.

    Raises:
      UserError: this model takes no melody, the melody is no audio, or as `generate`.
    """
    texts = arguments.check_descriptions(descriptions)
    num_frames(model.config, duration)
    condition_at = _conditions(model, texts, melody, melody_sample_rate, separate, duration)
    parts = (model.lm, model.encodec, model.config)
    return generate_piece(*parts, texts, condition_at, duration=duration, **settings)


def chroma(
    model: "MusicGen", audio: Audio, sample_rate: int, *, separate: bool | None = None
) -> np.ndarray:
    """What a melody model hears of audio: the loudest pitch class, moment by moment.

    Args:
      model: a melody model.
      audio: float [C, W] or [B, C, W], as in `generate_with_chroma`.
      sample_rate: of `audio`, in samples per second.
      separate: see `generate_with_chroma`.

    Returns:
      float32 [1 or B, T, 12], one-hot, beginning with C; T frames span `max_duration`.
    """
    melodies = _melodies(model, audio, sample_rate, separate, model.max_duration)
    return melodies.chroma_at(0.0)[0]


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
    if not is_number(sample_rate) or sample_rate < 1:
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


# --- What the language model is told --------------------------------------------------------------


def _conditions(
    model: "MusicGen",
    texts: Sequence[str | None],
    melody: Audio | Sequence[Audio | None],
    sample_rate: int,
    separate: bool | None,
    duration: float,
) -> Callable[[float], Condition]:
    """The condition of every window: the text once, the melody as it moves on."""
    melodies = _melodies(model, melody, sample_rate, separate, duration)
    if len(melodies) not in (1, len(texts)):
        raise UserError(
            f"{len(melodies)} melodies for {len(texts)} descriptions: give one for each, or "
            "one for all"
        )
    text = functools.cache(lambda: model.text_condition(texts))

    def condition_at(offset: float) -> Condition:
        return _with_melody(model.lm.chroma_conditioner, text(), *melodies.chroma_at(offset))

    return condition_at


def _melodies(
    model: "MusicGen",
    melody: Audio | Sequence[Audio | None],
    sample_rate: int,
    separate: bool | None,
    duration: float,
) -> Melodies:
    if not model.config.lm.chroma_bins:
        raise UserError(
            f"{model.name or 'this model'} takes no melody: use a melody model, such as "
            "facebook/musicgen-melody"
        )
    clips = check_melodies(melody, sample_rate, seconds=duration + model.max_duration)
    return Melodies(
        clips, int(sample_rate), config=model.config, duration=duration, separate=separate
    )


def without_melody(text: Condition, config: MusicGenConfig, dtype: DTypeLike) -> Condition:
    """The condition of a melody model that is told a text alone: B rows of null melody."""
    assert text.text is not None
    absent = jnp.zeros((len(text.text.mask), chroma_frames(config)), bool)
    return Condition(text.text, Embedded(jnp.zeros((*absent.shape, config.lm.dim), dtype), absent))


@jax.jit
def _with_melody(
    project: ChromaConditioner, text: Condition, chroma: jax.Array, given: jax.Array
) -> Condition:
    """`chroma` [1 or B, T, bins]; a row of which nothing is `given` [1 or B] stays null."""
    assert text.audio is not None
    vectors = jnp.where(given[:, None, None], project(chroma), text.audio.vectors)
    return Condition(text.text, Embedded(vectors, text.audio.mask | given[:, None]))


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
    from musicgen_jax.conditioning.separator import Separator

    return Separator.from_pretrained(SEPARATOR)


@functools.cache
def _say_not_separated() -> None:
    logging.getLogger("musicgen_jax").warning(NOT_SEPARATED)
