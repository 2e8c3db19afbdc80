"""Audio that a caller passes as an array: the checks, and their messages."""

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.errors import UserError, is_int, is_number

Audio = np.ndarray | jax.Array
Clips = Audio | Sequence[Audio | None]
Item = TypeVar("Item")


def check_clips(
    audio: Clips, sample_rate: int, what: str, *, seconds: float = math.inf
) -> list[np.ndarray | None]:
    """The clips of a batch, each checked.

    Args:
      audio: float [C, W], [B, C, W], or a list with one array [C, W] or None per clip.
      sample_rate: in Hz.
      what: what the audio is, for messages: "melody", "style".
      seconds: how much of each clip is used; the rest is neither checked nor returned.

    Returns:
      A float32 [C, W] or None for each clip.

    Raises:
      UserError: the audio is something else, empty, or not finite.
    """
    check_sample_rate(sample_rate)
    samples = None if math.isinf(seconds) else int(seconds * sample_rate)
    if not isinstance(audio, list | tuple):
        return list(check_audio(_beginning(audio, samples), sample_rate, what))  # type: ignore[arg-type]
    if not audio:
        raise UserError(f"the {what} list is empty: give one array or None per clip")
    clips: list[np.ndarray | None] = []
    for each in audio:
        clip = None
        if each is not None:
            (clip, *others) = check_audio(_beginning(each, samples), sample_rate, what)
            if others:
                raise UserError(f"each {what} of a list must be [C, W], got {list(np.shape(each))}")
        clips.append(clip)
    return clips


def digest(clips: Sequence[np.ndarray | None], sample_rate: int) -> str:
    """Identifies the clips of a batch, float32 [C, W] or None, at `sample_rate` Hz."""
    found = hashlib.sha256(f"{sample_rate} Hz".encode())
    for clip in clips:
        found.update(f"{None if clip is None else clip.shape}".encode())
        if clip is not None:
            found.update(clip.tobytes())
    return found.hexdigest()


def check_audio(audio: Audio, sample_rate: int, what: str) -> np.ndarray:
    """Audio as float32 [B, C, W] on the host.

    Args:
      audio: float [C, W] or [B, C, W].
      sample_rate: in Hz.
      what: what the audio is, for messages.

    Raises:
      UserError: the audio is something else, empty, or not finite, or the rate is not a positive
        integer.
    """
    try:
        wav = np.asarray(audio)
    except ValueError:  # clips of different lengths
        raise UserError(f"the {what} must be one array [C, W] or [B, C, W]") from None
    if not jnp.issubdtype(wav.dtype, jnp.floating):
        raise UserError(f"the {what} must be float samples from -1 to 1, got {wav.dtype}")
    if wav.ndim not in (2, 3):
        raise UserError(f"the {what} must be [C, W] or [B, C, W], got the shape {list(wav.shape)}")
    if not wav.size:
        raise UserError(f"the {what} is empty: it has the shape {list(wav.shape)}")
    if wav.shape[-2] > max(wav.shape[-1], _MOST_CHANNELS):
        raise UserError(
            f"the {what} must be [C, W] or [B, C, W], channels before samples: "
            f"the shape {list(wav.shape)} looks transposed"
        )
    with np.errstate(over="ignore"):
        wav = wav.astype(np.float32)
    if not np.isfinite(wav).all():
        raise UserError(f"the {what} holds NaN or infinity")
    check_sample_rate(sample_rate)
    return wav[None] if wav.ndim == 2 else wav


def check_sample_rate(sample_rate: int) -> None:
    """UserError unless `sample_rate` is a positive whole number of samples per second."""
    whole = is_int(sample_rate) or (is_number(sample_rate) and sample_rate == int(sample_rate))
    if not whole or sample_rate < 1:
        raise UserError(f"the sample rate must be a positive integer in Hz, got {sample_rate!r}")


def one_for_each(items: list[Item], batch: int, what: str) -> list[Item]:
    """`batch` items from one for each description, or from one for all.

    Raises:
      UserError: the number of items is neither 1 nor `batch`.
    """
    if len(items) not in (1, batch):
        raise UserError(
            f"{len(items)} {what} for {batch} descriptions: give one for each, or one for all"
        )
    return items * batch if len(items) == 1 else items


def rows_of(audio: Clips, rows: slice) -> Clips:
    """The clips of some rows; one clip for all rows, and anything invalid, stays as it is."""
    if not hasattr(audio, "__len__"):
        return audio
    if isinstance(audio, np.ndarray | jax.Array) and audio.ndim < 3:
        return audio
    return audio if len(audio) == 1 else audio[rows]


_MOST_CHANNELS = 8  # up to this many rows are channels, however few samples there are


def _beginning(audio: Audio, samples: int | None) -> Audio:
    """The first samples of an array, so that hours of audio cost no more than what is used."""
    return audio[..., :samples] if samples and getattr(audio, "ndim", 0) >= 2 else audio
