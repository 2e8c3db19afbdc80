"""Spectrograms for training losses and discriminators, with PyTorch's conventions."""

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.nn.axes import aligned


def hann(window: int, n_fft: int | None = None) -> np.ndarray:
    """Periodic Hann window, float32, padded with zeros on both sides to the FFT size."""
    n_fft = n_fft or window
    left = (n_fft - window) // 2
    # hanning() is symmetric: drop its last sample, which repeats the first.
    values = np.hanning(window + 1)[:-1].astype(np.float32)
    return np.pad(values, (left, n_fft - window - left))


def cut_frames(audio: jax.Array, size: int, hop: int) -> jax.Array:
    """Overlapping frames: [..., W] -> [..., T, size]; samples after the last frame are dropped."""
    count = (audio.shape[-1] - size) // hop + 1
    if count < 1:
        raise ValueError(f"{audio.shape[-1]} samples are too few for a window of {size}")
    if size % hop:
        return audio[..., np.arange(count)[:, None] * hop + np.arange(size)]
    # Concatenating slices of whole hops is much faster than gathering frames, also in the gradient.
    blocks = count + size // hop - 1
    hops = audio[..., : blocks * hop].reshape(*audio.shape[:-1], blocks, hop)
    return jnp.concatenate([hops[..., i : i + count, :] for i in range(size // hop)], axis=-1)


def stft(audio: jax.Array, n_fft: int, hop: int, window: int) -> jax.Array:
    """Complex spectrum, without padding at the ends.

    Args:
      audio: float [..., W], W >= n_fft.
      n_fft: size of the Fourier transform.
      hop: samples between frames.
      window: length of the Hann window, at most `n_fft`.

    Returns:
      complex64 [..., T, n_fft // 2 + 1].
    """
    frames = cut_frames(audio, n_fft, hop)
    return jnp.fft.rfft(frames * aligned(hann(window, n_fft), frames))


def reflected(audio: jax.Array, left: int, right: int) -> jax.Array:
    """The audio [..., W] with mirrored ends; the end samples are not repeated."""
    width = ((0, 0),) * (audio.ndim - 1)
    return jnp.pad(audio, (*width, (left, right)), mode="reflect")


def mel_bank(sample_rate: int, n_fft: int, n_mels: int, f_min: float) -> np.ndarray:
    """Triangular filters of height one, evenly spaced on the HTK mel scale.

    Narrow triangles may fall between two frequencies and be zero everywhere, as in torchaudio.

    Returns:
      float32 [n_fft // 2 + 1, n_mels].
    """

    def to_mel(hertz):
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    mels = np.linspace(to_mel(f_min), to_mel(sample_rate // 2), n_mels + 2)
    edges = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    bins = np.linspace(0.0, sample_rate // 2, n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def mel_spectrogram(
    audio: jax.Array,
    sample_rate: int,
    n_fft: int,
    hop: int,
    n_mels: int,
    f_min: float,
    *,
    normalized: bool,
) -> jax.Array:
    """Power in mel bands; mirrored ends give ceil(W / hop) frames.

    Args:
      audio: float [..., W].
      sample_rate: samples per second.
      n_fft: size of the Fourier transform and of its window.
      hop: samples between frames.
      n_mels: number of bands.
      f_min: lowest frequency, in hertz.
      normalized: whether to divide the spectrum by the norm of the window.

    Returns:
      float32 [..., T, n_mels].
    """
    side = (n_fft - hop) // 2
    x = reflected(audio, side, side)
    rest = -(x.shape[-1] - n_fft) % hop  # fills the last frame
    x = jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, rest)))
    spectrum = stft(x, n_fft, hop, n_fft)
    power = spectrum.real**2 + spectrum.imag**2
    if normalized:
        power = power / np.float32(np.square(hann(n_fft).astype(np.float64)).sum())
    return power @ mel_bank(sample_rate, n_fft, n_mels, f_min)
