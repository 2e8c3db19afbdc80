"""Decodes codes while they arrive; the pieces together equal the offline decode.

The decoder's convolutions depend on some frames to either side, and its LSTM depends on all earlier
frames. So this module decodes the codes in windows of one fixed length that overlap by the reach of
the convolutions. It keeps the inner frames of each window. The LSTM starts from its state at that
frame in the previous window. The first window begins at the beginning of the stream and the last
one ends at its end, so their edges are reflected as in the offline decode. All windows share one
compilation.
"""

import copy
from functools import partial
from typing import Any

import jax
import numpy as np

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec.lstm import LSTM, State
from musicgen_jax.nn.encodec.model import Encodec
from musicgen_jax.nn.encodec.seanet import conv_reach, decoder_reach, elu
from musicgen_jax.runtime import sharding


class StreamingDecoder:
    """Turns codes into audio, a few frames at a time, in bounded memory.

    `block` affects the output only by rounding. The division of the codes into pushes does not
    affect it at all.

    Args:
      encodec: the codec; a codec that normalises over time cannot stream.
      block: number of frames that each window adds. Audio comes in blocks of this size,
        `look_ahead(config)` frames after the codes. A larger block costs latency and memory; a
        smaller block costs time.

    Raises:
      ValueError: the codec normalises over time, or `block` is less than 1.
    """

    def __init__(self, encodec: Encodec, *, block: int):
        if encodec.config.norm == "time_group_norm":
            raise ValueError("a codec that normalises over time needs all of it at once")
        if block < 1:
            raise ValueError(f"block must be at least 1 frame, got {block}")
        self.encodec = encodec
        self._mesh = sharding.mesh_of(encodec)
        self._left, self._right = _reach(encodec.config)
        self._window = self._left + block + self._right
        self._codes: np.ndarray | None = None  # int32 [B, K, t], codes that are still needed
        self._begin = 0  # the frame number of the first of _codes
        self._emitted = 0
        self._states: tuple[State, ...] = ()  # of the latest window, before each of its frames
        self._flushed = False

    @property
    def received(self) -> int:
        """Number of frames received."""
        return self._begin + (0 if self._codes is None else self._codes.shape[2])

    @property
    def emitted(self) -> int:
        """Number of frames whose audio has been returned."""
        return self._emitted

    @property
    def window(self) -> int:
        """Number of frames that one program decodes; a shorter stream takes one of its own."""
        return self._window

    @property
    def latest(self) -> np.ndarray:
        """The last frame received, int32 [B, K, 1]."""
        assert self._codes is not None
        return self._codes[:, :, -1:]

    def fork(self) -> "StreamingDecoder":
        """An independent copy that continues from the current state."""
        return copy.copy(self)  # shallow: attributes are replaced, never modified

    def push(self, codes: np.ndarray | jax.Array) -> np.ndarray:
        """Adds frames of codes and returns the audio that is ready.

        Args:
          codes: int [B, K, t], t >= 0; B must be the same in every call.

        Returns:
          float32 [B, C, n * hop_length] on the host, n >= 0.
        """
        if self._flushed:
            raise ValueError("the stream has ended: flush was called")
        codes = np.asarray(codes, np.int32)
        known = codes if self._codes is None else np.concatenate([self._codes, codes], axis=2)
        self._codes = known
        parts = []
        while self._next_begin() + self._window <= self.received:
            begin = self._next_begin()
            parts.append(self._decode(begin, begin + self._window - self._right))
        return self._joined(parts)

    def flush(self) -> np.ndarray:
        """Ends the stream and returns the remaining audio, float32 [B, C, n * hop_length]."""
        if self._flushed:
            raise ValueError("the stream has ended: flush was called")
        self._flushed = True
        total = self.received
        if self._codes is None or total == self._emitted:
            return self._joined([])
        if total < self._window:  # then no audio has been returned yet
            self._emitted = total
            stage = partial(_decode_whole, self.encodec)
            return np.asarray(sharding.by_rows(self._mesh, stage, self._codes))
        return self._decode(total - self._window, total)

    def _next_begin(self) -> int:
        return max(0, self._emitted - self._left)

    def _decode(self, begin: int, until: int) -> np.ndarray:
        """Decodes the window at frame `begin`; returns its audio from `emitted` to `until`."""
        assert self._codes is not None
        first = self._begin  # first frame of the states: the previous window began with _codes
        start = self._left_of_lstm() if begin else 0
        states = self._states or _zero_states(self.encodec, self._codes.shape[0], self._window)
        self._codes = self._codes[:, :, begin - first :]
        self._begin = begin
        stage = partial(
            _decode_window,
            self.encodec,
            index=np.int32(begin + start - first if begin else 0),
            start=np.int32(start),
        )
        codes = self._codes[:, :, : self._window]
        audio, self._states = sharding.by_rows(self._mesh, stage, codes, states)
        hop = self.encodec.config.hop_length
        audio = np.asarray(audio)[:, :, (self._emitted - begin) * hop : (until - begin) * hop]
        self._emitted = until
        return audio

    def _left_of_lstm(self) -> int:
        return int(conv_reach(self.encodec.config, self.encodec.config.kernel_size)[0])

    def _joined(self, parts: list[np.ndarray]) -> np.ndarray:
        if len(parts) == 1:
            return parts[0]
        if parts:
            return np.concatenate(parts, axis=2)
        batch = 1 if self._codes is None else self._codes.shape[0]
        return np.zeros((batch, self.encodec.config.channels, 0), np.float32)


def look_ahead(config: EncodecConfig) -> int:
    """Number of later frames of codes that a frame's audio depends on."""
    return _reach(config)[1]


def _reach(config: EncodecConfig) -> tuple[int, int]:
    """How many frames to the left (before the LSTM) and right a frame of audio depends on."""
    left, right = decoder_reach(config, config.ratios) + conv_reach(config, config.kernel_size)
    return int(left), int(right)


def _zero_states(encodec: Encodec, batch: int, window: int) -> tuple[State, ...]:
    config = encodec.config
    width = config.n_filters * 2 ** len(config.ratios)
    zeros: Any = np.zeros((batch, window + 1, width), encodec.decoder.layers["0"].dtype)
    return ((zeros, zeros),) * config.lstm


@jax.jit
def _decode_window(
    encodec: Encodec,
    codes: jax.Array,
    states: tuple[State, ...],
    index: jax.Array,
    start: jax.Array,
) -> tuple[jax.Array, tuple[State, ...]]:
    """Decodes [B, K, W]; the LSTM resumes at frame `start` with the states at `index`.

    States are [B, W + 1, H] here, rows first, as in all arrays that are spread over devices.
    """
    x = encodec.quantizer.decode(codes)
    for i in range(encodec.decoder.length):
        layer = encodec.decoder.layers.get(str(i))
        if layer is None:
            x = elu(x)
        elif isinstance(layer, LSTM):
            x, states = layer.resume(x, jax.tree.map(lambda each: each[:, index], states), start)
            states = jax.tree.map(lambda each: each.swapaxes(0, 1), states)
        else:
            x = layer(x)
    return x.swapaxes(1, 2), states


@jax.jit
def _decode_whole(encodec: Encodec, codes: jax.Array) -> jax.Array:
    return encodec.decode(codes)
