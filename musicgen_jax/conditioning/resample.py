"""Resamples as julius does, whose output audiocraft's conditioners use.

`musicgen_jax.audio.resample` is for audio that people hear. This function is for networks: their
features depend on the shape of the filter, so it repeats julius' (`resample_frac`, zeros 24,
rolloff 0.945).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

_ZEROS, _ROLLOFF = 24, 0.945


def resample_frac(x: jax.Array, from_rate: int, to_rate: int) -> jax.Array:
    """Resamples the last axis: float `[..., W]` to `[..., floor(W * to_rate / from_rate)]`.

    The filter is a sinc below both Nyquist frequencies, windowed by a squared cosine. The ends are
    padded with the first and the last sample.
    """
    divisor = math.gcd(from_rate, to_rate)
    old, new = from_rate // divisor, to_rate // divisor
    if old == new:
        return x
    kernels = _kernels(old, new)  # [new, 2 width + old]
    width = (kernels.shape[1] - old) // 2
    rows = x.reshape(-1, 1, x.shape[-1])
    rows = jnp.pad(rows, ((0, 0), (0, 0), (width, width + old)), mode="edge")
    y = jax.lax.conv_general_dilated(
        rows, jnp.asarray(kernels)[:, None], window_strides=(old,), padding="VALID",
        precision="highest",
    )  # fmt: skip
    y = y.swapaxes(1, 2).reshape(*x.shape[:-1], -1)  # one sample of each phase, in turns
    return y[..., : new * x.shape[-1] // old]


def _kernels(old: int, new: int) -> np.ndarray:
    """One filter for each position that an output sample can have between two input samples."""
    cutoff = min(old, new) * _ROLLOFF
    width = math.ceil(_ZEROS * old / cutoff)
    inputs = np.arange(-width, width + old) / old
    t = (inputs - np.arange(new)[:, None] / new) * cutoff
    t = np.clip(t, -_ZEROS, _ZEROS)
    kernels = np.sinc(t) * np.cos(t * np.pi / _ZEROS / 2) ** 2
    return (kernels / kernels.sum(1, keepdims=True)).astype(np.float32)
