"""The bands of a spectrum, and sums over them."""

import numpy as np


def mel(frequency: np.ndarray | float) -> np.ndarray:
    """Hz on the mel scale of HTK and Kaldi."""
    return 1127 * np.log1p(np.asarray(frequency) / 700)


def triangles(bins: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Filters that rise from an edge to the next one and fall to the one after it.

    Args:
      bins: places of the bins, float64 [bins].
      edges: places of the edges on the same scale, float64 [bands + 2].

    Returns:
      float64 [bins, bands], 1 at the top.
    """
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    bins = bins[:, None]
    return np.maximum(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0)


def in_bands(spectrum: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """`spectrum @ filters` for filters that are narrow.

    It reads only the bins with weight. It also avoids NumPy's library of matrix products, whose
    threads spin after a product: they would take the cores from the network, which runs next.

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
