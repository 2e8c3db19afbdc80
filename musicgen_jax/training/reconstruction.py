"""Distances between a waveform and its reconstruction: audiocraft's, and two of our own.

All take (output, target), float [B, C, W], and return float32 []; lower means more similar.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from musicgen_jax.training.losses import spectral_loss
from musicgen_jax.training.spectrograms import cut_frames, mel_spectrogram, reflected, stft

Loss = Callable[[jax.Array, jax.Array], jax.Array]
_FLOOR = 1e-5  # of mel bands, inside the logarithm
_EPSILON = float(jnp.finfo(jnp.float32).eps)


def l1_loss(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean absolute difference of the samples."""
    return jnp.abs(output - target).mean()


def l2_loss(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared difference of the samples."""
    return jnp.square(output - target).mean()


def mel_loss(
    output: jax.Array,
    target: jax.Array,
    sample_rate: int,
    *,
    n_fft: int = 1024,
    hop: int = 256,
    n_mels: int = 64,
    f_min: float = 64.0,
    normalized: bool = False,
) -> jax.Array:
    """Mean absolute difference of mel bands' power, in factors of ten."""
    mel = functools.partial(
        mel_spectrogram,
        sample_rate=sample_rate,
        n_fft=n_fft,
        hop=hop,
        n_mels=n_mels,
        f_min=f_min,
        normalized=normalized,
    )
    return jnp.abs(jnp.log10(_FLOOR + mel(output)) - jnp.log10(_FLOOR + mel(target))).mean()


def multi_scale_mel_loss(
    output: jax.Array,
    target: jax.Array,
    sample_rate: int,
    *,
    range_start: int = 6,
    range_end: int = 11,
    n_mels: int = 64,
    f_min: float = 64.0,
    normalized: bool = True,
    alphas: bool = False,
) -> jax.Array:
    """Absolute difference of mel bands plus squared difference of their logs, for windows of 2^i.

    Args:
      output: float [B, C, W].
      target: float [B, C, W].
      sample_rate: samples per second.
      range_start: i of the smallest window.
      range_end: i of the largest window, plus one.
      n_mels: bands per spectrum; small windows cannot resolve them all.
      f_min: lowest frequency, in hertz.
      normalized: whether to divide spectra by the norm of their window, and the loss by the sum of
        its weights.
      alphas: whether to weigh the logarithms by sqrt(2^i - 1) instead of 1.

    Returns:
      float32 [] (audiocraft's `msspec`).
    """
    loss, weights = jnp.zeros(()), 0.0
    for i in range(range_start, range_end):
        mel = functools.partial(
            mel_spectrogram,
            sample_rate=sample_rate,
            n_fft=2**i,
            hop=2**i // 4,
            n_mels=n_mels,
            f_min=f_min,
            normalized=normalized,
        )
        a, b = mel(output), mel(target)
        alpha = (2**i - 1) ** 0.5 if alphas else 1.0
        logs = jnp.log10(_FLOOR + a) - jnp.log10(_FLOOR + b)
        loss += jnp.abs(a - b).mean() + alpha * jnp.square(logs).mean()
        weights += alpha + 1
    return loss / weights if normalized else loss


def mrstft_loss(
    output: jax.Array,
    target: jax.Array,
    *,
    n_ffts: tuple[int, ...] = (1024, 2048, 512),
    hop_lengths: tuple[int, ...] = (120, 240, 50),
    win_lengths: tuple[int, ...] = (600, 1200, 240),
    factor_sc: float = 0.5,
    factor_mag: float = 0.5,
) -> jax.Array:
    """Multi-resolution STFT loss: spectral convergence plus log magnitudes, mean over sizes.

    Args:
      output: float [B, C, W].
      target: float [B, C, W].
      n_ffts: sizes of the transforms.
      hop_lengths: samples between frames, per size.
      win_lengths: window lengths, each at most its `n_ffts`.
      factor_sc: weight of the spectral convergence, the error's norm over the target's.
      factor_mag: weight of the log magnitudes' mean absolute difference.

    Returns:
      float32 [].
    """
    convergence = magnitude = jnp.zeros(())
    for sizes in zip(n_ffts, hop_lengths, win_lengths, strict=True):
        a, b = _magnitudes(output, *sizes), _magnitudes(target, *sizes)
        # With the floor, the gradient for a perfect output is zero instead of NaN.
        error = jnp.sqrt(jnp.maximum(jnp.square(b - a).sum(), 1e-30))
        convergence += error / (jnp.sqrt(jnp.square(b).sum()) + _EPSILON)
        magnitude += jnp.abs(jnp.log(_EPSILON + b) - jnp.log(_EPSILON + a)).mean()
    return (factor_sc * convergence + factor_mag * magnitude) / len(n_ffts)


def _magnitudes(audio: jax.Array, n_fft: int, hop: int, window: int) -> jax.Array:
    spectrum = stft(reflected(audio, n_fft // 2, n_fft // 2), n_fft, hop, window)
    return jnp.sqrt(jnp.maximum(spectrum.real**2 + spectrum.imag**2, 1e-7))


def si_snr_loss(
    output: jax.Array,
    target: jax.Array,
    sample_rate: int,
    *,
    segment: float | None = None,
    overlap: float = 0.5,
) -> jax.Array:
    """The scale-invariant signal-to-noise ratio, negated, in decibels.

    Args:
      output: float [B, C, W].
      target: float [B, C, W].
      sample_rate: samples per second.
      segment: length in seconds of the pieces to evaluate (default: the whole clip). The last
        pieces are padded with zeros.
      overlap: share of a piece that the next piece overlaps.

    Returns:
      float32 [], the mean over pieces, channels and batch.
    """
    width = target.shape[-1]
    frame = width if segment is None else int(segment * sample_rate)
    hop = width if segment is None else int(frame * (1 - overlap))
    rest = (-(-width // hop) - 1) * hop + frame - width
    pieces = [
        cut_frames(jnp.pad(x, ((0, 0), (0, 0), (0, rest))), frame, hop) for x in (target, output)
    ]
    truth, estimate = (x - x.mean(-1, keepdims=True) for x in pieces)
    epsilon = _EPSILON * frame
    dot = (truth * estimate).sum(-1, keepdims=True)
    projection = dot * truth / (epsilon + jnp.square(truth).sum(-1, keepdims=True))
    signal = epsilon + jnp.square(projection).sum(-1)
    noise = epsilon + jnp.square(estimate - projection).sum(-1)
    return -10 * (jnp.log10(signal) - jnp.log10(noise)).mean()


def relative_l1_loss(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean absolute difference over the target's mean absolute value; about 1 for silent output."""
    return jnp.abs(target - output).mean() / (jnp.abs(target).mean() + 0.01)


def losses(sample_rate: int, windows: tuple[int, ...]) -> dict[str, Loss]:
    """All losses, keyed by the name of their weight, with audiocraft's default settings.

    Args:
      sample_rate: of the codec.
      windows: STFT sizes of "spectral", in samples.
    """

    def spectral(output: jax.Array, target: jax.Array) -> jax.Array:
        width = target.shape[-1]
        return spectral_loss(
            target.reshape(-1, width), output.reshape(-1, width), sample_rate, windows
        )

    return {
        "l1": l1_loss,
        "l2": l2_loss,
        "mel": functools.partial(mel_loss, sample_rate=sample_rate),
        "msspec": functools.partial(multi_scale_mel_loss, sample_rate=sample_rate),
        "mrstft": mrstft_loss,
        "sisnr": functools.partial(si_snr_loss, sample_rate=sample_rate, segment=5.0),
        "waveform": relative_l1_loss,
        "spectral": spectral,
    }
