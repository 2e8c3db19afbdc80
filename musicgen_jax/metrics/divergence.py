"""KL divergence between the labels that a classifier hears in two clips."""

import numpy as np

from musicgen_jax.errors import UserError

_FLOOR = 1e-6  # added to the second distribution, as audiocraft does


def kl_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """The mean of KL(p || q) over pairs of rows, in nats.

    1e-6 is added to q and the sum is not normalised again, as in audiocraft, whose `kld` has the
    reference as `p` and the generated clip as `q`.

    Args:
      p: float [N, classes], the reference: each row a distribution.
      q: float [N, classes], row i paired with row i of `p`.

    Raises:
      UserError: the shapes differ, there are no rows, or a row is not a distribution.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.shape != q.shape or p.ndim != 2 or not p.size:
        raise UserError(f"both sides must be [N, classes], got {p.shape} and {q.shape}")
    for rows in (p, q):
        # Written so that NaN fails too.
        if not ((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < 1e-3).all()):
            raise UserError("each row must be a distribution: not negative, with a sum of 1")
    logs = np.log(np.where(p > 0, p, 1)) - np.log(q + _FLOOR)  # 0 log 0 is 0
    return float((p * logs).sum(axis=1).mean())
