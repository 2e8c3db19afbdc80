"""A melody on its way to the language model: audio, perhaps separated, then chroma."""

import dataclasses
import functools
import logging
import threading
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.audio import convert_audio, convert_channels, resample
from musicgen_jax.conditioning.audio_input import Clips, check_clips, digest, one_for_each
from musicgen_jax.conditioning.chroma import (
    chroma_frames,
    melody_chroma,
    samples_heard,
    window_at,
)
from musicgen_jax.conditioning.key import Move, find_move
from musicgen_jax.conditioning.text import ConditionAt, text_conditions
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError
from musicgen_jax.nn.chroma_conditioner import ChromaConditioner
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.storage.hub import is_converted, models_home
from musicgen_jax.storage.loading import Parts

SEPARATOR = "htdemucs"
NOT_SEPARATED = (
    f"no {SEPARATOR} separator found: using the melody with its drums and bass. Convert one with "
    "`musicgen-jax convert`, or silence this with separate=False (--no-separate)"
)
_MARGIN = 1.0  # seconds of a long melody beyond the part that is used, for the resampler's edges


def melody_conditions(
    parts: Parts, batch: int, melodies: "Melodies", rows: slice = slice(None)
) -> ConditionAt:
    """The condition of every window of a piece: the text once, the melody from where it begins.

    Args:
      parts: of a melody model.
      batch: B.
      melodies: from `melodies_of`, one for all clips or one for each.
      rows: the B clips among those of `melodies`.

    Raises:
      UserError: there are not as many melodies as clips.
    """
    rows = slice(None) if len(melodies) == 1 else rows  # one melody is projected once
    one_for_each([None] * len(range(len(melodies))[rows]), batch, "melodies")
    text = text_conditions(parts)
    project = parts.lm.chroma_conditioner
    assert project is not None
    return lambda offset, texts: _with_melody(
        project, text(texts), *melodies.chroma_at(offset, rows)
    )


def melodies_of(
    config: MusicGenConfig,
    melody: Clips,
    sample_rate: int,
    *,
    separate: bool | None,
    duration: float,
) -> "Melodies":
    """The checked melodies of a batch.

    Args:
      config: of the model.
      melody: as in `MusicGen.generate_with_chroma`.
      sample_rate: of `melody`, in Hz.
      separate: as in `MusicGen.generate_with_chroma`.
      duration: seconds of the piece, checked.

    Raises:
      UserError: the model takes no melody, or the melody is not audio.
    """
    if not config.lm.chroma_bins:
        raise UserError(
            f"{config.name or 'this model'} takes no melody: use a melody model, such as "
            "nano-melody or facebook/musicgen-melody"
        )
    seconds = duration + config.max_duration + _MARGIN
    clips = check_clips(melody, sample_rate, "melody", seconds=seconds)
    return Melodies(clips, int(sample_rate), config=config, duration=duration, separate=separate)


class Melodies:
    """The melodies of a batch, as chroma for each window of a piece.

    Each clip is processed on its own. audiocraft first pads the melodies of a batch to the longest
    one, so a short melody is followed by near-silence there. Here a short melody repeats, as it
    does in audiocraft in a batch of one. It is prepared (separated, its key found) on first use,
    and only once, whichever thread asks.

    Args:
      clips: per item float [C, W] at `sample_rate`, checked, or None for no melody.
      sample_rate: in Hz.
      config: of the model.
      duration: seconds of the piece. A piece longer than the model's window is generated window
        by window; then each window takes the melody from where the window begins.
      separate: True: remove drums and bass with the separator `htdemucs`; False: use the audio as
        it is; None: separate if the separator is installed.
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
        self._prepared: dict[int, tuple[np.ndarray | None, Move | None]] = {}
        self._lock = threading.Lock()
        self._given = np.array([clip is not None for clip in clips])
        self._long = duration > config.max_duration
        if self._long:
            self._seconds = duration + config.max_duration
        else:
            grid = config.lm.chroma_window, config.lm.chroma_hop
            self._seconds = samples_heard(self.num_frames, *grid) / config.sample_rate

    def __len__(self) -> int:
        return len(self._clips)

    def digest(self) -> str:
        """Identifies the audio."""
        return digest(self._clips, self._rate)

    def chroma_at(self, offset: float, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """The chroma of the window that begins `offset` seconds into the piece.

        Args:
          offset: in seconds.
          rows: the clips that are wanted.

        Returns:
          float32 [B, T, bins], one-hot, zeros for a clip without a melody; and bool [B], whether
          the clip has one. B is the number of those clips.
        """
        config, wanted = self._config, range(len(self._clips))[rows]
        bins = config.lm.chroma_bins
        chroma = np.zeros((len(wanted), self.num_frames, bins), np.float32)
        for row, number in zip(chroma, wanted, strict=True):
            wav, move = self._melody(number)
            if wav is None:
                continue
            if self._long:
                wav = window_at(
                    wav, offset, sample_rate=config.sample_rate, seconds=config.max_duration
                )
            heard = melody_chroma(
                wav,
                sample_rate=config.sample_rate,
                num_frames=self.num_frames,
                num_chroma=bins,
                window=config.lm.chroma_window,
                hop=config.lm.chroma_hop,
                tuning=move.tuning if move else 0.0,
            )
            row[:] = np.roll(heard, move.semitones, axis=1) if move else heard
        return chroma, self._given[rows]

    @property
    def moves(self) -> list[Move | None]:
        """How each clip is moved into the key of a model that plays in only one key; else None.

        The logger `musicgen_jax` says which clips are moved.
        """
        return [self._melody(number)[1] for number in range(len(self._clips))]

    def _melody(self, number: int) -> tuple[np.ndarray | None, Move | None]:
        """A melody, mono at the model's rate, and its move."""
        with self._lock:
            if number not in self._prepared:
                self._prepared[number] = self._prepare(self._clips[number])
            return self._prepared[number]

    def _prepare(self, clip: np.ndarray | None) -> tuple[np.ndarray | None, Move | None]:
        if clip is None:
            return None, None
        config, lm = self._config, self._config.lm
        clip = clip[:, : int((self._seconds + _MARGIN) * self._rate)]
        audio = convert_audio(clip, self._rate, config.sample_rate, config.audio_channels)
        wav = melody_of(audio, config.sample_rate, find_separator(self._separate))
        if lm.chroma_tonic is None:
            return wav, None
        move = find_move(wav, config.sample_rate, lm.chroma_tonic, lm.chroma_window, lm.chroma_hop)
        if move is not None and move.semitones:
            logging.getLogger("musicgen_jax").warning("melody: %s", move)
        return wav, move


@jax.jit
def _with_melody(
    project: ChromaConditioner, condition: Condition, chroma: jax.Array, has_melody: jax.Array
) -> Condition:
    """Adds `chroma` [1 or B, T, bins]; rows where `has_melody` [1 or B] is False stay null."""
    assert condition.audio is not None
    vectors = jnp.where(has_melody[:, None, None], project(chroma), condition.audio.vectors)
    mask = condition.audio.mask | has_melody[:, None]
    return dataclasses.replace(condition, audio=Embedded(vectors, mask))


# --- The separator --------------------------------------------------------------------------------


def separator_at_hand() -> bool:
    """Whether a converted separator is in the folder of models."""
    return is_converted(SEPARATOR)


def melody_of(audio: np.ndarray, sample_rate: int, separator) -> np.ndarray:
    """The melody of audio: mono float32 [W'], with or without drums and bass.

    Args:
      audio: float32 [C, W], at the model's rate and number of channels.
      sample_rate: in Hz.
      separator: from `find_separator`. Resampling to its rate and back may cost or add a sample.
    """
    mono = convert_channels(audio, 1)
    if separator is not None and mono.shape[1] > 1:
        stems, rate = separator.melody(mono, sample_rate)
        mono = resample(convert_channels(stems, 1), rate, sample_rate)
    return mono[0]


def find_separator(separate: bool | None):
    """The separator, or None if the audio is used as it is.

    Nothing is downloaded. If `separate` is None and no separator is installed, the logger
    `musicgen_jax` says once per process that the melody is not separated.

    Raises:
      UserError: `separate` is True and there is no separator, or it is not True, False or None.
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
