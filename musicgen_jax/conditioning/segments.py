"""A fixed-length model over audio of any length: overlapping segments under triangular weights."""

from collections.abc import Callable

import numpy as np

OVERLAP = 0.25  # demucs' default


def in_segments(
    process: Callable[[np.ndarray], np.ndarray], audio: np.ndarray, length: int, lead: int = 0
) -> np.ndarray:
    """Runs `process` over one segment after the other and joins the results (demucs, apply.py).

    A segment that reaches beyond the end is centred on the audio that is left, so that the model
    hears the audio before it, then silence. Memory holds the result and one segment.

    Args:
      process: float32 [C, length] to float32 [..., length].
      audio: float32 [C, W], W > 0.
      length: of a segment, in samples.
      lead: samples of silence put before the audio, and cut off again: moves all seams.

    Returns:
      float32 [..., W].
    """
    total = lead + audio.shape[1]
    stride = max(1, int((1 - OVERLAP) * length))
    weight = _triangle(length)
    out, sum_weight = None, np.zeros(total, np.float32)
    for start in range(0, total, stride):
        count = min(length, total - start)
        before = (length - count) // 2
        part = process(_window(audio, start - before - lead, length))[..., before : before + count]
        if out is None:
            out = np.zeros((*part.shape[:-1], total), np.float32)
        out[..., start : start + count] += weight[:count] * part
        sum_weight[start : start + count] += weight[:count]
    assert out is not None
    out = out[..., lead:]
    out /= sum_weight[lead:]
    return out


def _window(audio: np.ndarray, start: int, length: int) -> np.ndarray:
    """`audio[:, start : start + length]` as if there were silence on both sides of it."""
    part = audio[:, max(0, start) : max(0, start + length)]
    left = min(max(0, -start), length)
    return np.pad(part, ((0, 0), (left, length - left - part.shape[1])))


def _triangle(length: int) -> np.ndarray:
    """Largest in the middle, nowhere zero."""
    half = length // 2
    rising, falling = np.arange(1, half + 1), np.arange(length - half, 0, -1)
    weight = np.concatenate([rising, falling]).astype(np.float32)
    return weight / weight.max()
