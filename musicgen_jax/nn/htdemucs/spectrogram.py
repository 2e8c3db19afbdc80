"""Waveform <-> spectrogram with demucs' framing, and complex numbers as channels.

A frame spans four hops, and there is exactly one frame per hop of audio. The waveform is reflected
by a hop and a half at both ends, so that frame t is centred on hop t. `spectrogram` drops the
highest bin (Nyquist), and `waveform` sets it to zero.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.nn.axes import aligned

_HOPS = 4  # per frame; Hann windows a quarter apart add up to a constant


def spectrogram(audio: jax.Array, nfft: int) -> jax.Array:
    """The spectra of the frames, scaled by 1 / sqrt(nfft).

    Args:
      audio: float32 `[..., W]`, with W more than 2.5 hops (the reflection must fit in the signal).
      nfft: samples per frame, four hops.

    Returns:
      complex64 `[..., T, F]`, T = ceil(W / hop), F = nfft / 2.
    """
    hop = nfft // _HOPS
    width = audio.shape[-1]
    frames = math.ceil(width / hop)
    margin = _margin(hop)
    padding = [(0, 0)] * (audio.ndim - 1) + [(margin, margin + frames * hop - width)]
    padded = jnp.pad(audio, padding, mode="reflect")
    hops = padded.reshape(*audio.shape[:-1], frames + _HOPS - 1, hop)
    framed = jnp.concatenate([hops[..., i : i + frames, :] for i in range(_HOPS)], axis=-1)
    spectra = jnp.fft.rfft(framed * aligned(_window(nfft), framed))
    return spectra[..., :-1] / np.float32(math.sqrt(nfft))


def waveform(spectra: jax.Array, length: int) -> jax.Array:
    """Inverts `spectrogram`: complex64 `[..., T, F]` to float32 `[..., length]`.

    The result is exact up to the dropped bin, since every sample lies in four frames.
    """
    frames, bins = spectra.shape[-2:]
    nfft = 2 * bins
    hop = nfft // _HOPS
    full = jnp.pad(spectra, [(0, 0)] * (spectra.ndim - 1) + [(0, 1)])
    # The squares of the four windows over a sample add up to 1.5.
    framed = jnp.fft.irfft(full, nfft)
    framed = framed * aligned(_window(nfft) * np.float32(math.sqrt(nfft) / 1.5), framed)
    parts = framed.reshape(*framed.shape[:-1], _HOPS, hop)
    batch = [(0, 0)] * (spectra.ndim - 2)
    hops = sum(
        jnp.pad(parts[..., i, :], [*batch, (i, _HOPS - 1 - i), (0, 0)]) for i in range(_HOPS)
    )
    audio = jnp.reshape(hops, (*spectra.shape[:-2], (frames + _HOPS - 1) * hop))
    return audio[..., _margin(hop) : _margin(hop) + length]


def complex_to_channels(spectra: jax.Array) -> jax.Array:
    """complex64 `[B, C, T, F]` to float32 `[B, T, F, 2 C]`: real, imaginary, next channel."""
    pairs = jnp.stack([spectra.real, spectra.imag], axis=-1)  # [B, C, T, F, 2]
    batch, _, frames, bins, _ = pairs.shape
    return pairs.transpose(0, 2, 3, 1, 4).reshape(batch, frames, bins, -1)


def channels_to_complex(x: jax.Array) -> jax.Array:
    """Inverts `complex_to_channels`: float32 `[B, T, F, 2 C]` to complex64 `[B, C, T, F]`."""
    pairs = x.reshape(*x.shape[:-1], -1, 2).transpose(0, 3, 1, 2, 4)
    return jax.lax.complex(pairs[..., 0], pairs[..., 1])


def _margin(hop: int) -> int:
    return hop // 2 * 3


def _window(nfft: int) -> np.ndarray:
    """The periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(nfft) / nfft)).astype(np.float32)
