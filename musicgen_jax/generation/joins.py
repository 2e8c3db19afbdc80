"""From the codes of windows to the audio of the whole piece.

With a hard join, as in audiocraft, the codec decodes one row of codes, and its own reach over
neighbouring frames makes the waveform continuous. The music may still jump: the last frames of a
window are drawn after its first codebook has ended, which the model never saw in training, and the
next window knows only its prompt.

With a crossfade the next window starts earlier and regenerates the end of the previous one from the
same context; the two versions are decoded and crossfaded.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from musicgen_jax.config import JOINS
from musicgen_jax.errors import UserError
from musicgen_jax.generation.windows import Layout, Window
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.encodec.channels import from_rows, to_rows
from musicgen_jax.nn.encodec.streaming import StreamingDecoder, look_ahead

CROSSFADE_SECONDS = 1.0
_CORRELATION_SECONDS = 0.05  # the span over which two waveforms are compared


def check_join(join: str) -> None:
    """UserError if there is no such join."""
    if join not in JOINS:
        raise UserError(f"join must be {' or '.join(JOINS)}, got {join!r}")


def overlap_frames(join: str, window: int, stride: int, frame_rate: float) -> int:
    """How many frames of the previous window a window regenerates.

    One second in the official models. At most `stride`, so that a fade ends before the next begins,
    and at most a quarter of the frames that two windows share, so that most of them stay a prompt.
    """
    if join == "hard":
        return 0
    return min(int(CROSSFADE_SECONDS * frame_rate), stride, (window - stride) // 4)


def decode_windows(
    encodec: Encodec,
    windows: Layout,
    pieces: Iterable[tuple[Window, np.ndarray]],
    *,
    channels: int,
    block: int,
) -> Iterator[np.ndarray]:
    """The audio of a piece, while its codes are being generated.

    Args:
      encodec: the codec, of one channel.
      windows: of the piece.
      pieces: from `windows.generate_windows`.
      channels: C; each is decoded on its own, from every C-th codebook.
      block: frames per stretch of audio, see `StreamingDecoder`.

    Yields:
      float32 [B, C, n]; in all, `hop_length` samples for each frame of the piece.
    """
    decoder = PieceDecoder(encodec, windows, channels=channels, block=block)
    for window, codes in pieces:
        yield from decoder.push(window, codes)
    yield from decoder.flush()


class PieceDecoder:
    """`decode_windows` for codes that are pushed by the caller.

    Args:
      encodec: as in `decode_windows`, like the others.
      windows: as in `decode_windows`.
      channels: as in `decode_windows`.
      block: as in `decode_windows`.
      one_program: whether a piece shorter than a window of the `StreamingDecoder` is padded with
        copies of its last frame and cut afterwards. Otherwise it is decoded as a whole, which takes
        a compilation for each length.
    """

    def __init__(
        self,
        encodec: Encodec,
        windows: Layout,
        *,
        channels: int,
        block: int,
        one_program: bool = False,
    ):
        self._windows, self._channels, self._one_program = windows, channels, one_program
        self._decoder = StreamingDecoder(encodec, block=block)
        self._fader = _Fader(encodec.config.hop_length, encodec.config.sample_rate)
        self._ahead = look_ahead(encodec.config)
        self._number, self._at = 0, 0
        self._tail: list[np.ndarray] = []  # frames of this window that the next one regenerates

    def push(self, window: Window, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Takes the next codes of a window and yields the audio that has become final."""
        if window.number != self._number:
            self._number, self._at, self._tail = window.number, window.start + window.prompt, []
        following = self._windows.following(window)
        shared = following.overlap if following else 0
        own = max(0, window.end - shared - self._at)
        self._at += codes.shape[2]
        audio = self._decoder.push(to_rows(codes[:, :, :own], self._channels))
        yield from self._fader.take(from_rows(audio, self._channels))
        self._tail.append(codes[:, :, own:])
        if shared and self._at == window.end:
            # This window's version of the end; the decoder itself continues with the next window's
            # version.
            ending = self._decoder.fork()
            begin = ending.emitted
            rows = [to_rows(codes, self._channels) for codes in self._tail]
            rest = [*map(ending.push, rows), ending.flush()]
            audio = from_rows(np.concatenate(rest, axis=2), self._channels)
            self._fader.add(window.end - shared, audio, begin, self._ahead)

    def flush(self) -> Iterator[np.ndarray]:
        """Ends the piece and yields the rest of its audio."""
        decoder, samples = self._decoder, self._windows[-1].end * self._fader.hop
        if self._one_program and (missing := decoder.window - decoder.received) > 0:
            longer = decoder.push(np.repeat(decoder.latest, missing, axis=2)), decoder.flush()
            audio = np.concatenate(longer, axis=2)[:, :, :samples]
            yield from_rows(audio, self._channels)
            return
        yield from self._fader.take(from_rows(decoder.flush(), self._channels))


def crossfade(old: np.ndarray, new: np.ndarray, sample_rate: int) -> np.ndarray:
    """Fades from one waveform to another, both float32 [B, C, n], without a dip or a swell.

    If the two are unrelated, the gains preserve the power of the sum. If they are the same, as at
    the start if both continue the same music, the gains add up to one. In between, the gains follow
    the correlation of the two around each moment, over all channels of a clip.
    """
    length = new.shape[2]
    angle = (np.arange(length) + 0.5) / length * (np.pi / 2)
    fall, rise = np.cos(angle), np.sin(angle)
    span = max(1, int(_CORRELATION_SECONDS * sample_rate))
    product, power_old, power_new = (
        _moving_sum((a.astype(np.float64) * b).sum(axis=1, keepdims=True), span)
        for a, b in ((old, new), (old, old), (new, new))
    )
    both = np.sqrt(np.maximum(power_old * power_new, 0))
    alike = np.clip(np.divide(product, both, where=both > 1e-12, out=np.zeros_like(both)), 0, 1)
    mixed = (fall * old + rise * new) / np.sqrt(1 + 2 * alike * fall * rise)
    return mixed.astype(np.float32)


class _Fader:
    """Holds back the audio under a fade until the whole fade is available."""

    def __init__(self, hop_length: int, sample_rate: int):
        self.hop, self.rate = hop_length, sample_rate
        # The old ending, the sample at which it begins, and the sample at which its fade begins.
        self.fades: list[tuple[int, int, np.ndarray]] = []
        self.end = 0  # the frame where the latest fade ends
        self.held: np.ndarray | None = None
        self.begin = 0  # the first sample of `held`, or of the next stretch

    def add(self, frame: int, audio: np.ndarray, begin: int, ahead: int) -> None:
        """A fade from `audio`, which begins at frame `begin`; the fade begins at `frame`.

        The `ahead` frames before the fade are `audio` alone: the codec looks ahead that far, so the
        next window's codes change the waveform there too.
        """
        alone = max(begin, frame - ahead, self.end)
        self.end = begin + audio.shape[2] // self.hop
        audio = audio[:, :, (alone - begin) * self.hop :]
        self.fades.append((alone * self.hop, frame * self.hop, audio))

    def take(self, audio: np.ndarray) -> Iterator[np.ndarray]:
        """Takes the next stretch and yields the audio that has become final."""
        held = audio if self.held is None else np.concatenate([self.held, audio], axis=2)
        while self.fades:
            begin, start, old = self.fades[0]
            first, last = begin - self.begin, begin - self.begin + old.shape[2]
            if held.shape[2] < last:
                break
            alone = start - begin
            new = held[:, :, first + alone : last]
            mixed = crossfade(old[:, :, alone:], new, self.rate)
            parts = [held[:, :, :first], old[:, :, :alone], mixed, held[:, :, last:]]
            held = np.concatenate(parts, axis=2)
            self.fades.pop(0)
        ready = held.shape[2]
        if self.fades:
            ready = max(0, min(ready, self.fades[0][0] - self.begin))
        self.held, self.begin = held[:, :, ready:], self.begin + ready
        if ready:
            yield held[:, :, :ready]


def _moving_sum(x: np.ndarray, span: int) -> np.ndarray:
    """The sum over about `span` samples around each, along the last axis."""
    before = span // 2
    total = np.cumsum(np.pad(x, ((0, 0), (0, 0), (before + 1, span - 1 - before))), axis=2)
    return total[:, :, span:] - total[:, :, :-span]
