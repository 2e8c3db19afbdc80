"""Losses: spectral distances for the codec, cross-entropy per codebook for the language model."""

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.training.spectrograms import mel_bank, reflected, stft


def mel_filters(sample_rate: int, window: int, n_mels: int) -> np.ndarray:
    """Triangular mel filters with unit sum, float32 [window // 2 + 1, n_mels], 20 Hz to Nyquist."""
    filters = mel_bank(sample_rate, window, n_mels, 20.0)
    return (filters / np.maximum(filters.sum(0), 1e-8)).astype(np.float32)


def magnitudes(audio: jax.Array, window: int) -> jax.Array:
    """Magnitudes of a centred Hann STFT with a hop of a quarter of the window.

    Args:
      audio: float [B, W].
      window: samples, a multiple of 4.

    Returns:
      float32 [B, frames, window // 2 + 1], scaled so that a full-scale sine stays near 1.
    """
    padded = reflected(audio, window // 2, window // 2)
    spectrum = stft(padded, window, window // 4, window)
    # The floor keeps the gradient of the square root finite in digital silence.
    power = spectrum.real**2 + spectrum.imag**2 + 1e-7
    return jnp.sqrt(power) * (4.0 / window)


def spectral_loss(
    target: jax.Array, output: jax.Array, sample_rate: int, windows: tuple[int, ...]
) -> jax.Array:
    """Mean over `windows` of a log-mel and a linear-magnitude L1 distance.

    The log distance is sensitive to quiet partials; the linear distance controls the loud ones.

    Args:
      target: float [B, W].
      output: float [B, W].
      sample_rate: samples per second.
      windows: STFT sizes in samples.

    Returns:
      float32 [].
    """
    total = jnp.zeros(())
    for window in windows:
        filters = mel_filters(sample_rate, window, max(10, min(96, window // 16)))
        a, b = magnitudes(target, window), magnitudes(output, window)
        log_a, log_b = jnp.log(a @ filters + 1e-4), jnp.log(b @ filters + 1e-4)
        total += jnp.abs(log_a - log_b).mean()
        total += 0.5 * jnp.abs(a - b).mean() / (jnp.abs(a).mean() + 1e-3)
    return total / len(windows)


def codebook_cross_entropy(logits: jax.Array, codes: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean cross-entropy of each codebook over its valid positions, in nats.

    The original's loss is the mean of these K numbers. Every codebook weighs the same, regardless
    of its number of valid positions (audiocraft, solvers/musicgen.py).

    Args:
      logits: float32 [B, K, T, V]; any value, even NaN, where `mask` is False.
      codes: int [B, K, T].
      mask: bool [B, K, T], True where there is a prediction and a target.

    Returns:
      float32 [K].
    """
    logits = jnp.where(mask[..., None], logits, 0.0)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probs, codes[..., None], axis=-1)[..., 0]  # [B, K, T]
    return -(picked * mask).sum((0, 2)) / jnp.maximum(mask.sum((0, 2)), 1)


def label_cross_entropy(
    hidden: jax.Array, weight: jax.Array, labels: jax.Array, classes
) -> jax.Array:
    """Cross-entropy of linear heads that predict the labels of frames.

    Args:
      hidden: `[B, T, D]`.
      weight: `[D, sum of classes]`, the concatenated heads.
      labels: int32 `[B, A, T]`; -1 for an unknown label.
      classes: number of classes of each of the A labels.

    Returns:
      float32 [], mean cross-entropy in nats over known labels, then the mean over the A labels.
    """
    logits = jnp.einsum("btd,dc->btc", hidden.astype(jnp.float32), weight)
    total = jnp.zeros(())
    for i, end in enumerate(np.cumsum(classes)):
        log_probs = jax.nn.log_softmax(logits[..., end - classes[i] : end])
        known = labels[:, i] >= 0
        own = jnp.take_along_axis(log_probs, jnp.maximum(labels[:, i], 0)[..., None], -1)[..., 0]
        total -= jnp.where(known, own, 0).sum() / jnp.maximum(known.sum(), 1)
    return total / len(classes)
