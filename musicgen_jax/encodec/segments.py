"""Around the 48 kHz EnCodec: overlapping segments, each coded at its own level.

A segment's network sees nothing outside it, so a file of any length is coded in the memory of
one segment. The joins are cross-faded. A codec without segments takes a clip as a single one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.config import EncodecConfig

_QUIETEST = 1e-8  # added to the level, so that silence can be divided by it


class Segment(NamedTuple):
    """Where a segment lies in a clip.

    Attributes:
      start: its first sample.
      width: its samples; fewer than the others near the end.
      frames: of codes.
    """

    start: int
    width: int
    frames: int


def segments(config: EncodecConfig, num_samples: int) -> list[Segment]:
    """Cuts a clip of so many samples; a codec without segments takes it whole."""
    length = config.segment_length or num_samples
    stride = config.segment_stride if config.segment_length else max(num_samples, 1)
    return [
        Segment(start, width, -(-width // config.hop_length))
        for start in range(0, num_samples, stride)
        for width in (min(length, num_samples - start),)
    ]


def level(audio: jax.Array) -> jax.Array:
    """Root of the mean square of the channels' mean: [B, C, W] -> [B]."""
    mono = jnp.mean(audio, axis=1)
    return jnp.sqrt(jnp.mean(jnp.square(mono), axis=1)) + _QUIETEST


class OverlapAdd:
    """Cross-fades decoded segments, in order, without holding more than their overlap.

    Each segment is weighted by a triangle over its full length, the sum by the sum of the weights:
    where two overlap, one fades linearly into the other (encodec, `_linear_overlap_add`).
    """

    def __init__(self, config: EncodecConfig, num_samples: int):
        length = config.segment_length or num_samples
        ramp = np.linspace(0, 1, length + 2, dtype=np.float32)[1:-1]
        self._weight = np.float32(0.5) - np.abs(ramp - np.float32(0.5))
        self._stride = config.segment_stride if config.segment_length else num_samples
        self._left = num_samples
        self._sum: np.ndarray | None = None  # [B, C, at most `length`], weighted
        self._weights = np.zeros(0, np.float32)

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Takes the next segment [B, C, W] and gives the samples that are now final."""
        weight = self._weight[: audio.shape[2]]
        audio = audio[..., : len(weight)] * weight  # a decoder's last frame reaches too far
        if self._sum is None:
            self._sum = np.zeros((*audio.shape[:2], 0), np.float32)
        width = max(len(weight), len(self._weights))
        total = _extended(self._sum, width)
        weights = _extended(self._weights, width)
        total[..., : len(weight)] += audio
        weights[: len(weight)] += weight
        ready = min(self._stride, width) if self._left > self._stride else min(self._left, width)
        out = total[..., :ready] / weights[:ready]
        self._sum, self._weights = total[..., ready:], weights[ready:]
        self._left -= ready
        return out


def _extended(x: np.ndarray, width: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((*x.shape[:-1], width - x.shape[-1]), x.dtype)], axis=-1)
