"""Encodes and decodes audio of one or more channels with a mono codec.

The codec of the stereo models is mono: channels are rows of its batch. In the codes each codebook
appears once per channel, left then right.
"""

from functools import partial
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.runtime import sharding

Array = TypeVar("Array", np.ndarray, jax.Array)


def encode(encodec: Encodec, audio: np.ndarray, mesh: Mesh | None = None) -> jax.Array:
    """Encodes audio to codes: float32 [B, C, W] to int32 [B, K, T].

    Args:
      encodec: the codec, of one channel or of all C.
      audio: audio at the codec's sample rate.
      mesh: device mesh that holds the codec, or None.
    """
    B, C, W = audio.shape
    own = encodec.config.channels
    rows = sharding.by_rows(mesh, partial(_encode, encodec), audio.reshape(-1, own, W))
    if own == C:  # each operation on a device is a program of its own
        return rows
    T = rows.shape[2]
    return rows.reshape(B, C // own, -1, T).swapaxes(1, 2).reshape(B, -1, T)


def decode(encodec: Encodec, codes: Array, channels: int, mesh: Mesh | None = None) -> jax.Array:
    """Decodes codes to audio: int32 [B, K, T] to float32 [B, C, T * hop_length].

    Compiles once per T. The codec's convolutions look ahead and reflect at the true end, so padding
    the codes to a common length would change the last frames.

    Args:
      encodec: the mono codec.
      codes: codes of all channels.
      channels: C, the number of channels.
      mesh: device mesh that holds the codec, or None.
    """
    stage = partial(_decode, encodec)
    rows = to_rows(np.asarray(codes), channels)  # on the host, where it needs no compilation
    return from_rows(sharding.by_rows(mesh, stage, rows), channels)


def to_rows(codes: Array, channels: int) -> Array:
    """Arranges codes [B, K, T] for the mono codec: [B * C, K / C, T]."""
    B, K, T = codes.shape
    rows = codes.reshape(B, K // channels, channels, T).swapaxes(1, 2)
    return rows.reshape(B * channels, K // channels, T)


def from_rows(audio: Array, channels: int) -> Array:
    """Reshapes the mono codec's audio, [B * C, 1, n] to [B, C, n]."""
    return audio.reshape(len(audio) // channels, channels, audio.shape[2])


# Modules are pytrees, so all codecs with the same shapes share one compilation.


@jax.jit
def _encode(encodec: Encodec, audio: jax.Array) -> jax.Array:
    return encodec.encode(audio)


@jax.jit
def _decode(encodec: Encodec, codes: jax.Array) -> jax.Array:
    return encodec.decode(codes)
