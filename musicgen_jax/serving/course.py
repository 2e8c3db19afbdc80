"""One clip on its way: the windows that are still to be made, and the codes that are."""

import numpy as np

from musicgen_jax.conditioning.text import ConditionAt
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.windows import Store, Window, prompt_of
from musicgen_jax.nn import patterns
from musicgen_jax.serving.engine import Engine, Prepared

Codes = tuple[Window, np.ndarray]  # int32 [1, K, t], the next frames of a piece


class Course:
    """The windows of a clip, one after the other, as `windows.generate_windows` makes them.

    Args:
      request: one clip.
      condition_at: of each window.
      engine: whose slots the windows take.
      store: finished windows are saved there, and those found there are not made again.

    Attributes:
      steps_done: of the language model.
      steps_total: that the piece takes.
    """

    def __init__(
        self, request: Request, condition_at: ConditionAt, engine: Engine, store: Store | None
    ):
        self.request, self.engine = request, engine
        self._condition_at, self._store = condition_at, store
        self._delays = request.config.lm.delays
        self._steps = [w.length + max(self._delays) - w.prompt for w in request.windows]
        self._number = 0
        self._prompt = request.prompt
        self._parts: list[np.ndarray] = []  # of this window, without what earlier ones yielded
        self._emitted = 0  # frames of this window
        self.steps_done, self.steps_total = 0, sum(self._steps)

    @property
    def window(self) -> Window | None:
        """The window that is being made, or comes next; None after the last one."""
        windows = self.request.windows
        return windows[self._number] if self._number < len(windows) else None

    def stored(self) -> list[Codes]:
        """The codes of the next windows that the store has; they are done."""
        found: list[Codes] = []
        while self._store is not None and (window := self.window) is not None:
            codes = self._store.load(window)
            if codes is None:
                break
            found.append((window, codes))
            self._parts = [codes]
            self._close(window)
        return found

    def prepare(self) -> Prepared:
        """The next window, ready for a slot of the engine."""
        window = self.window
        assert window is not None
        offset = window.start / self.request.config.frame_rate
        condition = self._condition_at(offset, self.request.texts)
        return self.engine.prepare(self.request, window, condition, self._prompt)

    def take(self, steps: np.ndarray, done: int) -> list[Codes]:
        """The frames that have become complete.

        Args:
          steps: int32 `[K, S + 1]` of the slot.
          done: the last step that is complete.
        """
        window = self.window
        assert window is not None
        before = sum(self._steps[: self._number])
        self.steps_done = before + done - window.prompt
        known = window.prompt if window.number else 0  # already yielded by earlier windows
        first = max(self._emitted, known)
        if done - max(self._delays) <= first:
            return []
        codes = patterns.to_codes(steps[None, :, first : done + 1], self._delays)
        self._emitted = first + codes.shape[2]
        self._parts.append(codes)
        if self._emitted == window.length:
            if self._store is not None:
                self._store.save(window, np.concatenate(self._parts, axis=2))
            self._close(window)
        return [(window, codes)]

    def _close(self, window: Window) -> None:
        """Goes on to the next window."""
        codes = np.concatenate(self._parts, axis=2)
        if window.number and self._prompt is not None:
            codes = np.concatenate([self._prompt, codes], axis=2)
        self._number += 1
        self._parts, self._emitted = [], 0
        self.steps_done = sum(self._steps[: self._number])
        if (following := self.window) is not None:
            self._prompt = prompt_of(following, window, codes)
