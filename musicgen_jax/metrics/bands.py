"""Sums over the bands of a spectrum."""

import numpy as np


def in_bands(spectrum: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """`spectrum @ filters` for filters that are narrow.

    It reads only the bins that count. It also leaves NumPy's library of matrix products alone,
    whose threads wait actively after a product: they would take the cores from the network, which
    comes next.

    Args:
      spectrum: float64 [T, bins].
      filters: float64 [bins, bands].

    Returns:
      float64 [T, bands].
    """
    sums = np.zeros((len(spectrum), filters.shape[1]))
    for band, weights in enumerate(filters.T):
        (bins,) = np.nonzero(weights)
        if len(bins):
            near = slice(bins[0], bins[-1] + 1)
            sums[:, band] = np.einsum("tf,f->t", spectrum[:, near], weights[near])
    return sums
