"""Overlapping segments for the 48 kHz EnCodec, each coded at its own level.

The network sees one segment at a time, so coding a file of any length takes the memory of one
segment. The joins are crossfaded. A codec without segments treats a clip as a single segment.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec.model import Encodec

_QUIETEST = 1e-8  # added to the level, so that silence does not divide by zero


class Segment(NamedTuple):
    """The position of a segment in a clip.

    Attributes:
      start: first sample of the segment.
      width: number of samples; segments near the end of the clip can be shorter.
      frames: number of code frames.
    """

    start: int
    width: int
    frames: int


def segments(config: EncodecConfig, num_samples: int) -> list[Segment]:
    """Cuts a clip of `num_samples` into segments; a codec without segments takes it whole.

    A clip slightly longer than n strides ends in two short segments. The second of them lies
    completely within the overlap.
    """
    length = config.segment_length or num_samples
    stride = config.segment_stride if config.segment_length else num_samples
    widths = {s: min(length, num_samples - s) for s in range(0, num_samples, max(stride, 1))}
    return [Segment(s, width, -(-width // config.hop_length)) for s, width in widths.items()]


def level(audio: jax.Array) -> jax.Array:
    """Root mean square of the mean of the channels: [B, C, W] -> [B]."""
    mono = jnp.mean(audio, axis=1)
    return jnp.sqrt(jnp.mean(jnp.square(mono), axis=1)) + _QUIETEST


def overlap_add(
    config: EncodecConfig, num_samples: int, decoded: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
    """Crossfades decoded segments, holding one at a time.

    Each segment is weighted by a triangle of the first segment's width, and the sum is divided by
    the sum of the weights. So one segment fades linearly into the next where they overlap. This
    follows encodec's `_linear_overlap_add`, which fails at lengths where the second-to-last segment
    ends after the last.

    Args:
      config: config of a codec that works in segments.
      num_samples: length of the clip in samples.
      decoded: audio [B, C, W] of each segment in `segments`, in whole frames.

    Yields:
      The clip in pieces [B, C, W].
    """
    stride = config.segment_stride
    triangle = total = weights = np.zeros(0, np.float32)
    for start, audio in zip(range(0, num_samples, stride), decoded, strict=True):
        if not start:
            ramp = np.linspace(0, 1, audio.shape[2] + 2, dtype=np.float32)[1:-1]
            triangle = np.float32(0.5) - np.abs(ramp - np.float32(0.5))
            total, weights = np.zeros_like(audio), np.zeros_like(triangle)
        weight = triangle[: audio.shape[2]]
        total[..., : len(weight)] += weight * audio
        weights[: len(weight)] += weight
        ready = min(stride, num_samples - start)
        yield total[..., :ready] / weights[:ready]
        total, weights = _shifted(total, stride), _shifted(weights, stride)


def _shifted(x: np.ndarray, by: int) -> np.ndarray:
    """Drops the first `by` numbers along the last axis and appends zeros."""
    return np.concatenate([x[..., by:], np.zeros_like(x[..., :by])], axis=-1)


def encode_segment(encodec: Encodec, audio: np.ndarray, n_q: int) -> list[np.ndarray]:
    """Codes of a segment, int32 [B, K, T], and its level, float32 [B], if the codec stores one."""
    return [np.asarray(part) for part in _encode(encodec, audio, n_q)]


def decode_segment(encodec: Encodec, codes: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """Audio of a segment, float32 [B, C, W], scaled to its level unless `scale` is None."""
    return np.asarray(_decode(encodec, codes, scale))


@functools.partial(jax.jit, static_argnames="n_q")
def _encode(encodec: Encodec, audio: jax.Array, n_q: int) -> tuple[jax.Array, ...]:
    if not encodec.config.normalize:
        return (encodec.encode(audio, n_q),)
    scale = level(audio)
    return encodec.encode(audio / scale[:, None, None], n_q), scale


@jax.jit
def _decode(encodec: Encodec, codes: jax.Array, scale: jax.Array | None) -> jax.Array:
    audio = encodec.decode(codes)
    return audio if scale is None else audio * scale[:, None, None]
