"""The delay pattern: lays out codes `[B, K, T]` as the steps `[B, K, S]` that the model reads.

Step 0 contains only special tokens. Frame t of codebook k is at step `t + 1 + delays[k]`. Every
other slot holds the special token. With delays 0, 1, 2, 3 and three frames:

    step      0  1  2  3  4  5  6
    book 0    .  0  1  2  .  .  .
    book 1    .  .  0  1  2  .  .
    book 2    .  .  .  0  1  2  .
    book 3    .  .  .  .  0  1  2

(audiocraft: `DelayedPatternProvider`.) Delays can be any non-negative numbers, one per codebook.
"""

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)  # numpy in, numpy out: no compilation per length


def num_steps(num_frames: int, delays: Sequence[int]) -> int:
    """S, the number of steps for T frames."""
    return num_frames + max(delays) + 1


def to_steps(codes: Array, delays: Sequence[int], special: int) -> Array:
    """Lays codes out as steps.

    Args:
      codes: `[B, K, T]`.
      delays: K delays.
      special: token for every slot without a code.

    Returns:
      `[B, K, S]`, S = T + max(delays) + 1.
    """
    _check_books(codes, delays)
    xp = codes.__array_namespace__()
    rows = [
        xp.pad(codes[:, k], ((0, 0), (1 + d, max(delays) - d)), constant_values=special)
        for k, d in enumerate(delays)
    ]
    return xp.stack(rows, axis=1)


def to_codes(steps: Array, delays: Sequence[int]) -> Array:
    """Reads the codes back.

    Args:
      steps: `[B, K, S, ...]`, S > max(delays).
      delays: K delays.

    Returns:
      `[B, K, T, ...]`, T = S - max(delays) - 1.
    """
    _check_books(steps, delays)
    num_frames = steps.shape[2] - max(delays) - 1
    if num_frames < 0:
        raise ValueError(f"{steps.shape[2]} steps are too few for the delays {tuple(delays)}")
    rows = [steps[:, k, 1 + d : 1 + d + num_frames] for k, d in enumerate(delays)]
    return steps.__array_namespace__().stack(rows, axis=1)


def _check_books(x: jax.Array | np.ndarray, delays: Sequence[int]) -> None:
    if x.ndim < 3 or x.shape[1] != len(delays):
        raise ValueError(f"expected [B, {len(delays)}, time], one book per delay, got {x.shape}")
