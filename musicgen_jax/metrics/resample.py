"""Resampling as torchaudio does it with the settings of fadtk: a sinc under a Kaiser window."""

import functools
import math

import numpy as np

_WIDTH, _ROLLOFF, _BETA = 64, 0.9475937167399596, 14.769656459379492


def in_16_bits(x: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """The input of a fadtk network for float [..., W]: resampled, then through a 16-bit file."""
    whole = np.round(resample_kaiser(x, from_rate, to_rate) * 2.0**15)
    return np.clip(whole, -(2**15), 2**15 - 1) / 2**15


def resample_kaiser(x: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples float [..., W] to float64 [..., ceil(W * to_rate / from_rate)].

    The signal counts as silent before the beginning and after the end.
    """
    divisor = math.gcd(from_rate, to_rate)
    old, new = from_rate // divisor, to_rate // divisor
    x = np.asarray(x, np.float64)
    if old == new:
        return x
    kernels, width = _kernels(old, new)
    around = [(0, 0)] * (x.ndim - 1) + [(width, width + old)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, around), kernels.shape[1], axis=-1)
    y = windows[..., ::old, :] @ kernels.T
    return y.reshape(*x.shape[:-1], -1)[..., : -(-new * x.shape[-1] // old)]


@functools.lru_cache(maxsize=8)
def _kernels(old: int, new: int) -> tuple[np.ndarray, int]:
    """A filter for each position of an output sample between input samples, and its half width."""
    cutoff = min(old, new) * _ROLLOFF
    width = math.ceil(_WIDTH * old / cutoff)
    inputs = np.arange(-width, width + old) / old
    t = np.clip((inputs - np.arange(new)[:, None] / new) * cutoff, -_WIDTH, _WIDTH)
    window = np.i0(_BETA * np.sqrt(1 - np.square(t / _WIDTH))) / np.i0(_BETA)
    return np.sinc(t) * window * (cutoff / old), width
