"""Pieces longer than the model's window: which frames are generated when, and from what.

As in audiocraft (`MusicGen._generate_tokens`) a piece is a row of windows, each `stride` later than
the one before. A window is a generation of its own: positions begin at 0, it has its own condition,
and its prompt is the part of the previous window that it covers too.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import jax
import numpy as np

from musicgen_jax.conditioning.text import ConditionAt, Texts
from musicgen_jax.generation.decode import stream_codes
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.nn.lm import LM

_WINDOW_KEYS = 1 << 31  # far from the numbers that steps fold into a key


@dataclasses.dataclass(frozen=True)
class Window:
    """One generation within a piece; all lengths are frames.

    Attributes:
      number: 0, 1, 2 and so on.
      start: where in the piece it begins.
      length: how long it is, its prompt included.
      prompt: how many of its first frames are known.
      overlap: how many of the previous window's last frames this window regenerates.
    """

    number: int
    start: int
    length: int
    prompt: int
    overlap: int = 0

    @property
    def end(self) -> int:
        """The first frame of the piece after the window."""
        return self.start + self.length


class Store(Protocol):
    """Keeps the frames of finished windows; see `window_store.WindowStore`."""

    def load(self, window: Window) -> np.ndarray | None:
        """The codes of a finished window, int32 [B, K, t], or None."""
        ...

    def save(self, window: Window, codes: np.ndarray) -> None:
        """Keeps the codes of a finished window."""
        ...


def layout(
    total: int, *, window: int, stride: int, prompt: int = 0, overlap: int = 0
) -> list[Window]:
    """The windows of a piece.

    Args:
      total: frames of the piece.
      window: the most frames of one window.
      stride: frames from the start of one window to the start of the next, below `window`.
      prompt: frames known at the beginning of the piece, fewer than the first window has.
      overlap: frames of the previous window that each window regenerates, with
        `stride + overlap < window`. The prompt is never regenerated, so the first overlap may be
        shorter.
    """
    windows = [Window(0, 0, min(total, window), prompt)]
    while (last := windows[-1]).end < total:
        start = last.start + stride
        again = min(overlap, last.length - last.prompt)
        known = last.end - again - start
        length = min(total - start, window)
        windows.append(Window(last.number + 1, start, length, known, again))
    return windows


def generate_windows(
    lm: LM,
    condition_at: ConditionAt,
    texts: Texts,
    windows: list[Window],
    *,
    keys: jax.Array,
    prompt: np.ndarray | None,
    sampling: Sampling,
    frame_rate: float,
    chunk: int = 0,
    callback: Callable[[int, int], None] | None = None,
    store: Store | None = None,
    lengths: Sequence[int] | None = None,
) -> Iterator[tuple[Window, np.ndarray]]:
    """Generates window after window and yields the new frames.

    Args:
      lm: the model.
      condition_at: the condition of each window, B rows.
      texts: what the clips are described by.
      windows: from `layout`.
      keys: [B] typed keys. The first window uses them unchanged, so a piece of one window equals
        `generate_codes`.
      prompt: int32 [B, K, P], the beginning of the piece, or None.
      sampling: how tokens are drawn.
      frame_rate: frames per second.
      chunk: as in `stream_codes`.
      callback: called with (steps done, total steps), counted over all windows.
      store: finished windows are saved there, and those found there are not generated again.
      lengths: as in `stream_codes`.

    Yields:
      A window and int32 [B, K, t]: the next frames after the window's prompt. The first window's
      prompt is included.
    """
    delay = max(lm.config.delays)
    steps = [window.length + delay - window.prompt for window in windows]
    done = 0
    context = prompt
    reserve = max(window.length for window in windows)
    for window, following in zip(windows, [*windows[1:], None], strict=True):
        new = None if store is None else store.load(window)
        if new is not None:
            if callback:
                callback(done + steps[window.number], sum(steps))
            yield window, new
        else:
            known = window.prompt if window.number else 0  # already yielded by earlier windows
            parts = []
            for codes in stream_codes(
                lm,
                condition_at(window.start / frame_rate, texts),
                num_frames=window.length,
                prompt=context,
                keys=window_keys(keys, window.number),
                sampling=sampling,
                chunk=chunk,
                reserve=reserve,
                lengths=lengths,
                callback=_counted(callback, done, sum(steps)),
            ):
                cut = min(known, codes.shape[2])
                known -= cut
                if cut < codes.shape[2]:
                    parts.append(codes[:, :, cut:])
                    yield window, parts[-1]
            new = np.concatenate(parts, axis=2)
            if store is not None:
                store.save(window, new)
        done += steps[window.number]
        if following is not None:
            whole = new
            if window.number:
                assert context is not None
                whole = np.concatenate([context, new], axis=2)
            context = prompt_of(following, window, whole)


def prompt_of(following: Window, window: Window, codes: np.ndarray) -> np.ndarray:
    """What a window begins with: the part of the one before, int32 [B, K, T], that it covers."""
    begin = following.start - window.start
    return codes[:, :, begin : begin + following.prompt]


def assemble(pieces: Iterable[tuple[Window, np.ndarray]]) -> np.ndarray:
    """The codes of the whole piece, int32 [B, K, T]; an overlap takes those of the later window."""
    parts: list[np.ndarray] = []
    number = 0
    for window, codes in pieces:
        if window.number != number:
            number, surplus = window.number, window.overlap
            while surplus:
                last = parts.pop()
                if last.shape[2] > surplus:
                    parts.append(last[:, :, :-surplus])
                surplus = max(0, surplus - last.shape[2])
        parts.append(codes)
    return np.concatenate(parts, axis=2)


def window_keys(keys: jax.Array, number: int) -> jax.Array:
    """The B keys of a window: the clips' own in the first, folded with its number in later ones."""
    if number == 0:
        return keys
    return jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(_WINDOW_KEYS + number))


def _counted(
    callback: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[[int, int], None] | None:
    if callback is None:
        return None
    return lambda done, _: callback(before + done, total)
