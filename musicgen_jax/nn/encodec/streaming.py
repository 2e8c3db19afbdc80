"""Decoding while the codes still come in: pieces that, put together, are the offline decode.

The decoder's convolutions look some frames to either side and its LSTM back to the beginning. So
the codes are decoded in windows of one fixed length that overlap by that reach; of each window the
inner frames are kept, and the LSTM starts from the state it had there in the window before. At the
beginning and the end of the stream a window ends where the stream does, and its own edge is the
true one, with its reflection. One compilation serves every window.
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

    What comes out depends on `block` by rounding alone, and not at all on how the codes are cut
    into pushes.

    Args:
      encodec: the codec; one that normalises over time cannot stream.
      block: frames that each window adds. Audio comes in such blocks, `look_ahead(config)` frames
        behind the codes; more of it costs latency and memory, less of it time.

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
        self._codes: np.ndarray | None = None  # int32 [B, K, t], those not yet done with
        self._begin = 0  # the frame that _codes begins with
        self._emitted = 0
        self._states: tuple[State, ...] = ()  # of the latest window, before each of its frames
        self._flushed = False

    @property
    def received(self) -> int:
        """Frames that have come in."""
        return self._begin + (0 if self._codes is None else self._codes.shape[2])

    @property
    def emitted(self) -> int:
        """Frames whose audio has gone out."""
        return self._emitted

    def fork(self) -> "StreamingDecoder":
        """A decoder that goes its own way from here on."""
        return copy.copy(self)  # what it holds is replaced, never changed

    def push(self, codes: np.ndarray | jax.Array) -> np.ndarray:
        """Takes frames in and gives out what audio is ready.

        Args:
          codes: int [B, K, t], t from 0; B is the same each time.

        Returns:
          float32 [B, C, n * hop_length] on the host, n frames from 0.
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
        """Ends the stream: the rest of the audio, float32 [B, C, n * hop_length], n from 0."""
        if self._flushed:
            raise ValueError("the stream has ended: flush was called")
        self._flushed = True
        total = self.received
        if self._codes is None or total == self._emitted:
            return self._joined([])
        if total < self._window:  # then nothing has gone out yet
            self._emitted = total
            stage = partial(_decode_whole, self.encodec)
            return np.asarray(sharding.by_rows(self._mesh, stage, self._codes))
        return self._decode(total - self._window, total)

    def _next_begin(self) -> int:
        return max(0, self._emitted - self._left)

    def _decode(self, begin: int, until: int) -> np.ndarray:
        """Decodes the window that begins at a frame; its audio from what is emitted to `until`."""
        assert self._codes is not None
        first = self._begin  # where the states begin: the window before began with the codes kept
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
    """Frames of codes that must be known behind a frame before its audio is."""
    return _reach(config)[1]


def _reach(config: EncodecConfig) -> tuple[int, int]:
    """How many frames left and right (before the LSTM) one frame of audio depends on."""
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
    """The decoder on [B, K, W], its LSTM going on from frame `start` with the states at `index`.

    States are [B, W + 1, H] here: rows first, as in all that is spread over devices.
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
