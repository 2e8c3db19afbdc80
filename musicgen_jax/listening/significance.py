"""Whether two systems differ: paired sign-flip tests, corrected for the number of comparisons.

If two systems are equal, each rater's mean difference between them could as well have the other
sign, and so could each piece's. The test flips these signs, once by rater and once by piece, and
asks how often the mean difference is as large as the one that was found. The larger of the two
p-values counts: the difference must hold for other raters and for other pieces. It assumes no
distribution. With n raters or pieces no p-value is below 2 / 2^n: see `fewest`.
"""

import itertools
from collections.abc import Sequence

import numpy as np

_EXACT = 14  # up to 2^14 sign patterns are all tried; of more, `_DRAWS` are drawn at random
_DRAWS = 20_000


def paired_p(differences: np.ndarray, seed: int = 0) -> float:
    """The p-value, two-sided, that a mean difference is zero.

    Args:
      differences: float [raters, pieces], of two systems' scores; NaN where one is missing.
      seed: seed of the sign patterns, if not all are tried.

    Returns:
      from 0 to 1; 1 without any difference.
    """
    known = ~np.isnan(differences)
    differences = differences[known.any(axis=1)][:, known.any(axis=0)]
    if not differences.size:
        return 1.0
    return max(
        _sign_flips(np.nanmean(differences, axis=1), seed),
        _sign_flips(np.nanmean(differences, axis=0), seed),
    )


def fewest(pairs: int, level: float = 0.05) -> int:
    """The least number of raters, and of pieces, for one of `pairs` to differ at `level`."""
    return next(n for n in itertools.count(2) if max(1, pairs) * 2 / 2**n < level)


def _sign_flips(values: np.ndarray, seed: int) -> float:
    n = len(values)
    found = abs(values.mean()) * (1 - 1e-12)  # equal sums differ in their last digits
    if n <= _EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
        return float((abs(signs @ values / n) >= found).mean())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (_DRAWS, n))
    return float((1 + (abs(signs @ values / n) >= found).sum()) / (1 + _DRAWS))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number (Holm 1979): all at once, they err in 5 % of studies."""
    order = np.argsort(p_values, kind="stable")
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected
