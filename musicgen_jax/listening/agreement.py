"""Agreement between raters: Krippendorff's alpha for interval data."""

import numpy as np


def krippendorff_alpha(scores: np.ndarray) -> float | None:
    """Krippendorff's alpha, with the squared difference as distance.

    alpha = 1 - observed disagreement / expected disagreement: 1 where raters agree on every clip, 0
    where they agree only by chance, negative where they agree less than that. Krippendorff,
    "Computing Krippendorff's Alpha-Reliability", 2011; scores may be missing.

    Args:
      scores: float [raters, clips], NaN where there is no score.

    Returns:
      alpha; None if no clip has two scores, or all scores are the same.
    """
    scores = np.asarray(scores, np.float64)
    known = ~np.isnan(scores)
    shared = known.sum(axis=0) >= 2  # only these clips count
    scores, known = scores[:, shared], known[:, shared]
    count = known.sum(axis=0)
    if not shared.any():
        return None
    # The sum of squared differences over ordered pairs of n values is 2 n times the sum of their
    # squared deviations from the mean. Within a clip of n scores, each pair weighs 1 / (n - 1).
    within = _deviations(scores, known, axis=0)
    observed = (2 * count * within / (count - 1)).sum() / count.sum()
    total = count.sum()
    everything = scores[known]
    expected = 2 * ((everything - everything.mean()) ** 2).sum() / (total - 1)
    return float(1 - observed / expected) if expected > 0 else None


def _deviations(scores: np.ndarray, known: np.ndarray, axis: int) -> np.ndarray:
    filled = np.where(known, scores, 0)
    mean = filled.sum(axis=axis) / known.sum(axis=axis)
    return np.where(known, (scores - mean) ** 2, 0).sum(axis=axis)
