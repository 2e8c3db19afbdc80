"""Measures of clips that need no classifier: silence, repetition, distortion, distance."""

from collections.abc import Callable

import numpy as np

from musicgen_jax.nano.synth import SAMPLE_RATE

SILENT = 0.005  # RMS of a second
COMPONENTS = 24


def has_silence(clip: np.ndarray) -> bool:
    """Whether any second of a clip is silent, in steps of a quarter of a second."""
    energy = np.cumsum(np.concatenate([[0.0], clip.astype(np.float64) ** 2]))
    starts = np.arange(0, max(1, len(clip) - SAMPLE_RATE + 1), SAMPLE_RATE // 4)
    ends = np.minimum(starts + SAMPLE_RATE, len(clip))
    means = (energy[ends] - energy[starts]) / (ends - starts)
    return bool((means < SILENT**2).any())


def repetition(codes: np.ndarray) -> float:
    """How often a frame repeats the previous frame's token of the first codebook: [N, K, T]."""
    return float((codes[:, 0, 1:] == codes[:, 0, :-1]).mean())


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Scale-invariant signal to distortion in dB: [N, W], [N, W] to [N]."""
    scale = (reference * estimate).sum(1) / (reference**2).sum(1)
    target = scale[:, None] * reference
    return 10 * np.log10((target**2).sum(1) / ((estimate - target) ** 2).sum(1))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance between Gaussians fitted to two sets of rows, [N, D] and [M, D]."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * mixed)


def principal(reference: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Standardises by `reference` [N, D] and projects onto its first principal components.

    At most N / 4 components: N rows cannot estimate a larger covariance well.
    """
    mean, scale = reference.mean(0), reference.std(0) + 1e-3
    count = max(1, min(COMPONENTS, len(reference) // 4))
    axes = np.linalg.svd((reference - mean) / scale, full_matrices=False)[2][:count]
    return lambda rows: (rows - mean) / scale @ axes.T


def half_width(rate: float, count: int) -> float:
    """Half of Wilson's 95 % interval of a rate: above 0 even when all or none are right."""
    z = 1.96
    inside = rate * (1 - rate) / count + z**2 / (4 * count**2)
    return z * inside**0.5 / (1 + z**2 / count)
