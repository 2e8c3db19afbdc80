"""The input of CLAP's audio tower: pieces of 10 s at 48 kHz, and their log-mel spectrum."""

import functools
import hashlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from musicgen_jax import audio
from musicgen_jax.audio.level import checked
from musicgen_jax.conditioning.resample import resample_frac
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.bands import in_bands, triangles
from musicgen_jax.metrics.protocols import ClapRule
from musicgen_jax.metrics.resample import in_16_bits

SAMPLE_RATE = 48000
LENGTH = 10 * SAMPLE_RATE  # samples of a piece
FRAMES, BANDS = 1001, 64  # of its spectrum

FFT, _HOP = 1024, 480
_LOW, _HIGH = 50.0, 14_000.0  # Hz, the edges of the mel filters


def pieces(wav: np.ndarray, sample_rate: int, rule: ClapRule) -> Iterator[np.ndarray]:
    """The pieces of a clip that the network hears, each float32 [480000].

    A random cut begins at a place drawn from a generator that the clip itself seeds, by a digest of
    its samples. So a clip has the same cut in every run and every order.

    Args:
      wav: float [C, W].
      sample_rate: in Hz.
      rule: how to do it.

    Raises:
      UserError: the clip is empty or not finite.
    """
    mono = _prepared(wav, sample_rate, rule)
    if rule.every_second:
        starts = list(range(0, len(mono), SAMPLE_RATE))
    else:
        starts = [0]
        if len(mono) > LENGTH:
            starts = [int(_generator(wav).integers(len(mono) - LENGTH + 1))]
        mono = np.tile(mono, max(LENGTH // len(mono), 1))
    for start in starts:
        piece = mono[start : start + LENGTH]
        yield np.pad(piece, (0, LENGTH - len(piece)))


def _prepared(wav: np.ndarray, sample_rate: int, rule: ClapRule) -> np.ndarray:
    """A clip at 48 kHz, float32 [W']."""
    wav = checked(wav)
    if not np.isfinite(wav).all():
        raise UserError("the audio contains samples that are NaN or infinite")
    if rule.resampler == "julius":
        # The order of rate and channels is audiocraft's.
        resampled = np.asarray(resample_frac(jnp.asarray(wav), sample_rate, SAMPLE_RATE))
        mono = audio.convert_channels(resampled, 1) if resampled.shape[1] else resampled
    elif rule.resampler == "soxr":
        mono = audio.resample(audio.convert_channels(wav, 1), sample_rate, SAMPLE_RATE)
    else:
        mono = in_16_bits(wav.mean(axis=0, keepdims=True), sample_rate, SAMPLE_RATE)
    if not mono.shape[1]:
        raise UserError(f"{wav.shape[1]} samples are too short for CLAP")
    if rule.peak:
        mono = audio.normalize_audio(mono, SAMPLE_RATE, "peak")
    if rule.rounded:
        mono = np.trunc(np.clip(mono, -1, 1) * 32767) / 32767
    return mono[0].astype(np.float32)


def _generator(wav: np.ndarray) -> np.random.Generator:
    samples = np.asarray(wav, "<f4", order="C").tobytes()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(samples).digest()))


def log_mel(piece: np.ndarray) -> np.ndarray:
    """The spectrum of power in dB, not below -100: float [W] to float32 [T, 64]."""
    padded = np.pad(np.asarray(piece, np.float64), FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::_HOP]
    spectrum = np.fft.rfft(frames * hann())
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return (10 * np.log10(np.maximum(in_bands(power, mel_filters()), 1e-10))).astype(np.float32)


def hann() -> np.ndarray:
    """The window of the spectrum, periodic, float64 [1024]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)


@functools.cache
def mel_filters() -> np.ndarray:
    """Slaney's triangles, each divided by half its width in Hz, float64 [513, 64].

    The scale is linear up to 1000 Hz and logarithmic above.
    """
    low, high = _mel(_LOW), _mel(_HIGH)
    edges = _frequency(np.linspace(low, high, BANDS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)
    return triangles(bins, edges) * 2 / (edges[2:] - edges[:-2])


_LINEAR = 200 / 3  # Hz per mel below 1000 Hz
_RATIO = np.log(6.4) / 27  # ratio of neighbouring mels above


def _mel(frequency: float) -> float:
    if frequency < 1000:
        return frequency / _LINEAR
    return float(1000 / _LINEAR + np.log(frequency / 1000) / _RATIO)


def _frequency(mel: np.ndarray) -> np.ndarray:
    bend = 1000 / _LINEAR
    above = 1000 * np.exp(_RATIO * np.maximum(mel - bend, 0))
    return np.where(mel < bend, _LINEAR * mel, above)
