"""The excerpt of a clip that represents its style, at a place that a random key chooses."""

import jax
import numpy as np

DEFAULT_EXCERPT = 3.0  # seconds; the model was trained on excerpts of 1.5 to 4.5
_EXCERPT_STREAM = 0x7374796C  # "styl": beyond every step and window that keys are folded with


def excerpt(
    clip: np.ndarray, length: int, key: jax.Array, *, offset: int = 0, window: int | None = None
) -> np.ndarray:
    """The part of a clip that represents its style, at a place that the key chooses.

    For a window of a piece longer than the model's own, the clip is first turned into that window
    as audiocraft does: repeated without end, from `offset` on, `window` samples. Each window draws
    its own place.

    Args:
      clip: float [W], W at least `length`.
      length: samples of the excerpt.
      key: the example's; it has a stream of its own here, independent of its other uses.
      offset: samples of the piece before the window.
      window: samples of the window; None to use the clip unchanged.

    Returns:
      float [length].
    """
    key = jax.random.fold_in(key, _EXCERPT_STREAM)
    if window is None:
        span, first = len(clip) - length, 0
    else:
        key, span, first = jax.random.fold_in(key, offset), max(window - length, 0), offset
    start = first + int(jax.random.randint(key, (), 0, span + 1, np.int32))
    if start + length <= len(clip):
        return clip[start : start + length]
    return clip[np.arange(start, start + length) % len(clip)]
