"""Pieces longer than the model's window: which frames are generated when, and from what.

As in audiocraft (`MusicGen._generate_tokens`) a piece is a row of windows, each `stride` later than
the one before. A window is a generation of its own: positions begin at 0, it has its own condition,
and its prompt is the part of the previous window that it covers too.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, overload

import jax
import numpy as np

from musicgen_jax.conditioning.text import ConditionAt
from musicgen_jax.generation.decode import stream_codes
from musicgen_jax.generation.schedule import Scene, Timeline
from musicgen_jax.nn.condition import Condition
from musicgen_jax.nn.lm import LM

_WINDOW_KEYS = 1 << 31  # far from the numbers that steps fold into a key


@dataclasses.dataclass(frozen=True)
class Window:
    """One generation within a piece; all lengths are frames.

    Attributes:
      number: 0, 1, 2 and so on.
      start: where in the piece it begins.
      length: how long it is, including its prompt.
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


class Layout(Sequence[Window]):
    """The windows of a piece, computed on access: a piece may have no end.

    Args:
      total: frames of the piece.
      window: the most frames of one window.
      stride: frames from the start of one window to the start of the next, below `window`.
      prompt: frames known at the beginning of the piece, fewer than the first window has.
      overlap: frames of the previous window that each window regenerates, with
        `stride + overlap < window`. The prompt is never regenerated, so the first overlap may be
        shorter.
    """

    def __init__(self, total: int, *, window: int, stride: int, prompt: int = 0, overlap: int = 0):
        self._total, self._window, self._stride = total, window, stride
        self._prompt, self._overlap = prompt, overlap

    def __len__(self) -> int:
        return 1 - min(0, self._window - self._total) // self._stride

    @overload
    def __getitem__(self, index: int) -> Window: ...

    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...

    def __getitem__(self, index: int | slice) -> Window | list[Window]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"there is no window {index}")
        if number == 0:
            return Window(0, 0, min(self._total, self._window), self._prompt)
        start = number * self._stride
        # Never more of a window than it has generated: the first, then each of the others.
        again = min(self._overlap, self._window - self._prompt + (number - 1) * self._stride)
        known = self._window - self._stride - again
        return Window(number, start, min(self._total - start, self._window), known, again)

    def first(self, count: int) -> "Layout":
        """The layout of a piece that ends with the last of `count` windows, or before."""
        return Layout(
            self[min(count, len(self)) - 1].end,
            window=self._window,
            stride=self._stride,
            prompt=self._prompt,
            overlap=self._overlap,
        )

    def following(self, window: Window) -> Window | None:
        """The next window, None after the last one."""
        return self[window.number + 1] if window.number + 1 < len(self) else None

    def drawn_from(self, frame: int) -> Window | None:
        """The first window whose new frames all lie at a frame or later."""
        number = max(0, (frame - self._window) // self._stride)
        while number < len(self):
            window = self[number]
            if window.start + window.prompt >= frame:
                return window
            number += 1
        return None


def generate_windows(
    lm: LM,
    condition_at: ConditionAt,
    timeline: Timeline,
    windows: Layout,
    *,
    keys: jax.Array,
    prompt: np.ndarray | None,
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
      timeline: the clips' texts and how tokens are drawn, and when these change.
      windows: of the piece.
      keys: [B] typed keys. The first window uses them unchanged, so a piece of one window equals
        `generate_codes`.
      prompt: int32 [B, K, P], the beginning of the piece, or None.
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
    # An endless piece has no callback.
    total = sum(w.length + delay - w.prompt for w in windows) if callback else 0
    done = 0
    context = prompt
    reserve = windows[0].length
    for window in windows:
        steps, following = window.length + delay - window.prompt, windows.following(window)
        new = None if store is None else store.load(window)
        if new is not None:
            if callback:
                callback(done + steps, total)
            yield window, new
        else:
            known = window.prompt if window.number else 0  # already yielded by earlier windows
            parts = []
            begun = timeline.at(window.start + window.prompt)
            changes = WindowChanges(lm, condition_at, timeline, window, frame_rate)
            for codes in stream_codes(
                lm,
                changes.condition(begun),
                num_frames=window.length,
                prompt=context,
                keys=window_keys(keys, window.number),
                sampling=begun.sampling,
                changes=changes,
                chunk=chunk,
                reserve=reserve,
                lengths=lengths,
                callback=_counted(callback, done, total),
            ):
                cut = min(known, codes.shape[2])
                known -= cut
                if cut < codes.shape[2]:
                    parts.append(codes[:, :, cut:])
                    yield window, parts[-1]
            new = np.concatenate(parts, axis=2)
            if store is not None:
                store.save(window, new)
        done += steps
        if following is not None:
            whole = new
            if window.number:
                assert context is not None
                whole = np.concatenate([context, new], axis=2)
            context = prompt_of(following, window, whole)


class WindowChanges:
    """The changes within a window, by its steps: see `decode.Changes`.

    Args:
      lm: the model.
      condition_at: the condition of each window.
      timeline: of the piece.
      window: one of its windows.
      frame_rate: frames per second.
    """

    def __init__(
        self,
        lm: LM,
        condition_at: ConditionAt,
        timeline: Timeline,
        window: Window,
        frame_rate: float,
    ):
        self._condition_at, self._timeline, self._window = condition_at, timeline, window
        self._offset = window.start / frame_rate
        self._prepended = lm.config.conditioning == "prepend"

    def condition(self, scene: Scene) -> Condition:
        """The condition of a scene, in this window."""
        # The prefix stays in front of the tokens: a new text waits for the next window.
        if self._prepended:
            scene = self._timeline.at(self._window.start + self._window.prompt)
        return self._condition_at(self._offset, scene.texts)

    def at(self, step: int) -> Scene:
        """The scene that holds when step + 1 is predicted."""
        # The last steps, beyond the last frame, belong to it.
        return self._timeline.at(min(self.frame(step), self._window.end - 1))

    def frame(self, step: int) -> int:
        """The frame of the piece that is drawn next, once a step is complete."""
        return min(self._window.start + step, self._window.end)

    def reached(self, step: int) -> None:
        """Tells the timeline that a step is complete: new cues come after it."""
        self._timeline.now = self.frame(step)

    def until(self, step: int, stop: int) -> int:
        """The first step after `step` where something changes, at most `stop`."""
        frame = self._timeline.after(self._window.start + step)
        if frame is None or frame >= self._window.end:
            return stop
        return min(stop, frame - self._window.start)


def prompt_of(following: Window, window: Window, codes: np.ndarray) -> np.ndarray:
    """A window's prompt: the part of the previous window, int32 [B, K, T], that it covers."""
    begin = following.start - window.start
    return codes[:, :, begin : begin + following.prompt]


def assemble(pieces: Iterable[tuple[Window, np.ndarray]]) -> np.ndarray:
    """The codes of the whole piece, int32 [B, K, T]; in an overlap, those of the later window."""
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
    """The B keys of a window: in the first the clips' own, in later ones folded with its number."""
    if number == 0:
        return keys
    return jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(_WINDOW_KEYS + number))


def _counted(
    callback: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[[int, int], None] | None:
    if callback is None:
        return None
    return lambda done, _: callback(before + done, total)
