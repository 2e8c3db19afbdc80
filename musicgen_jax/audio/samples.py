"""Converts audio to another sample rate or number of channels."""

import numpy as np

from musicgen_jax.audio.level import checked
from musicgen_jax.errors import UserError

MAX_SAMPLES = 2**29  # over all channels: 2 GiB of float32; an hour of stereo at 48 kHz has 0.35e9


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples along the last axis, band-limited (soxr, HQ).

    Args:
      audio: float [C, W].
      from_rate: rate of `audio` in Hz.
      to_rate: rate of the result in Hz.

    Returns:
      float32 [C, floor(W * to_rate / from_rate)], as in audiocraft, but at least one sample.
    """
    audio = checked(audio)
    if min(from_rate, to_rate) <= 0:
        raise UserError(f"sample rates must be positive, got {from_rate} and {to_rate}")
    if from_rate == to_rate:
        return audio
    if audio.size * to_rate > MAX_SAMPLES * from_rate:  # a file may say that it has 1 Hz
        seconds = audio.shape[1] / from_rate
        raise UserError(f"audio of {seconds:.0f} s is too long at {to_rate} Hz")
    import soxr

    length = max(1, audio.shape[1] * to_rate // from_rate)
    out = soxr.resample(np.ascontiguousarray(audio.T), from_rate, to_rate, quality="HQ").T
    missing = max(0, length - out.shape[1])  # soxr rounds a fraction of a sample down to zero
    return np.ascontiguousarray(np.pad(out, ((0, 0), (0, missing)))[:, :length])


def convert_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """Converts audio [C, W] to another number of channels.

    One channel is the mean of all. Mono is copied to every channel. Otherwise, the first channels
    are kept.

    Raises:
      UserError: `channels` is more than C, and C is more than one.
    """
    audio = checked(audio)
    if channels < 1:
        raise UserError(f"the number of channels must be at least 1, got {channels}")
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return audio.mean(axis=0, keepdims=True)
    if audio.shape[0] == 1:
        return np.repeat(audio, channels, axis=0)
    if audio.shape[0] > channels:
        return audio[:channels]
    raise UserError(f"audio of {audio.shape[0]} channels cannot become {channels}")


def convert_audio(audio: np.ndarray, from_rate: int, to_rate: int, to_channels: int) -> np.ndarray:
    """Converts the rate (`resample`) and the channel count (`convert_channels`) of audio [C, W].

    The rate comes first, as in audiocraft. Many channels are reduced first, to bound the memory;
    the result is the same up to rounding.
    """
    if len(audio) > max(2, to_channels):
        audio = convert_channels(audio, to_channels)
    return convert_channels(resample(audio, from_rate, to_rate), to_channels)
