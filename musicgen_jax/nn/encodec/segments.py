"""Around the 48 kHz EnCodec: overlapping segments, each coded at its own level.

A segment's network sees nothing outside it, so a file of any length is coded in the memory of
one segment. The joins are cross-faded. A codec without segments takes a clip as a single one.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec.model import Encodec

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
    """Cuts a clip of so many samples; a codec without segments takes it whole.

    A clip a little longer than n strides ends in two short segments, the second all overlap.
    """
    length = config.segment_length or num_samples
    stride = config.segment_stride if config.segment_length else num_samples
    widths = {s: min(length, num_samples - s) for s in range(0, num_samples, max(stride, 1))}
    return [Segment(s, width, -(-width // config.hop_length)) for s, width in widths.items()]


def level(audio: jax.Array) -> jax.Array:
    """Root of the mean square of the channels' mean: [B, C, W] -> [B]."""
    mono = jnp.mean(audio, axis=1)
    return jnp.sqrt(jnp.mean(jnp.square(mono), axis=1)) + _QUIETEST


def overlap_add(
    config: EncodecConfig, num_samples: int, decoded: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
    """Cross-fades decoded segments, holding one at a time.

    Each is weighted by a triangle over the first one's width, the sum divided by that of the
    weights: where two overlap, one fades linearly into the other (encodec,
    `_linear_overlap_add`, which fails at lengths where the last but one reaches beyond the last).

    Args:
      config: of a codec that works in segments.
      num_samples: of the clip.
      decoded: one [B, C, W] for each of `segments`, its frames whole.

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
    """Without its first numbers along the last axis, zeros behind."""
    return np.concatenate([x[..., by:], np.zeros_like(x[..., :by])], axis=-1)


def encode_segment(encodec: Encodec, audio: np.ndarray, n_q: int) -> list[np.ndarray]:
    """Codes of a segment, int32 [B, K, T], and its level, float32 [B], if the codec keeps one."""
    return [np.asarray(part) for part in _encode(encodec, audio, n_q)]


def decode_segment(encodec: Encodec, codes: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """Audio of a segment, float32 [B, C, W], at its level if there is one."""
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
