"""The progress of one clip: the windows that are still to be made, and the codes made so far."""

from collections import deque
from concurrent.futures import Future

import numpy as np

from musicgen_jax.conditioning.text import ConditionAt
from musicgen_jax.errors import UserError
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.schedule import Cue, Scene, TooLate
from musicgen_jax.generation.windows import Store, Window, WindowChanges, prompt_of
from musicgen_jax.nn import patterns
from musicgen_jax.serving.engine import Engine, Prepared

Codes = tuple[Window, np.ndarray]  # int32 [1, K, t], the next frames of a piece


class Course:
    """The windows of a clip, one after the other, as `windows.generate_windows` makes them.

    Args:
      request: one clip.
      condition_at: of each window.
      engine: the engine whose slots the windows take.
      store: finished windows are saved there, and those found there are not made again.

    Attributes:
      timeline: which settings hold when.
      steps_done: of the language model.
      steps_total: steps that the piece takes; 0 if it has no end.
    """

    def __init__(
        self, request: Request, condition_at: ConditionAt, engine: Engine, store: Store | None
    ):
        self.request, self.engine = request, engine
        self._condition_at, self._store = condition_at, store
        self._delays = request.config.lm.delays
        self.timeline = request.timeline()
        self._asked: deque[tuple[Cue, Future[float]]] = deque()
        self._changes: WindowChanges | None = None  # of this window
        self._scene: Scene | None = None  # that the slot has
        self._number, self._steps_before = 0, 0
        self._prompt = request.prompt
        self._parts: list[np.ndarray] = []  # of this window, without what earlier ones yielded
        self._emitted = 0  # frames of this window
        self.steps_done, self.steps_total = 0, 0
        if not request.endless:
            self.steps_total = sum(map(self._steps, request.windows))

    @property
    def window(self) -> Window | None:
        """The window that is being made or comes next; None after the last one."""
        windows = self.request.windows
        return windows[self._number] if self._number < len(windows) else None

    def _steps(self, window: Window) -> int:
        return window.length + max(self._delays) - window.prompt

    def stored(self) -> list[Codes]:
        """The codes of the next windows that the store already has."""
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
        lm, rate = self.engine.parts.lm, self.request.config.frame_rate
        self._changes = WindowChanges(lm, self._condition_at, self.timeline, window, rate)
        step = window.prompt
        while (step := self._changes.until(step, window.length)) < window.length:
            self._changes.condition(self._changes.at(step))  # encodes the text, which is kept
        return self._prepared(window, self._changes.at(window.prompt))

    def _prepared(self, window: Window, scene: Scene) -> Prepared:
        assert self._changes is not None
        self._scene, condition = scene, self._changes.condition(scene)
        return self.engine.prepare(self.request, window, condition, self._prompt, scene.sampling)

    # --- Changes ------------------------------------------------------------------------------

    def encode(self, cue: Cue) -> None:
        """Encodes the texts of a cue off the thread of the device; they are kept."""
        if cue.texts and self.request.config.lm.conditioning != "prepend":
            scene = self.timeline.at(self.timeline.now).changed(cue)
            self._condition_at(0.0, scene.texts)

    def ask(self, cue: Cue, answer: "Future[float]") -> None:
        """Requests a change at the next step that is not made yet; any thread may call this."""
        self._asked.append((cue, answer))

    def answer(self, done: int) -> None:
        """Takes the changes that were asked for, from the next step on; the slot may be held.

        Args:
          done: the last step that is complete.
        """
        changes = self._changes
        assert changes is not None
        changes.reached(done)
        while (asked := self._next_asked()) is not None:
            cue, answer = asked
            try:
                answer.set_result(self.timeline.add(cue, changes.frame(done)))
            except UserError as error:
                answer.set_exception(error)

    def _next_asked(self) -> "tuple[Cue, Future[float]] | None":
        """Takes one; another thread may take the last one meanwhile."""
        try:
            return self._asked.popleft()
        except IndexError:
            return None

    def settle(self, done: int) -> Prepared | None:
        """The new condition and settings of the slot's next step, if something changes there.

        Args:
          done: the last step that is complete.
        """
        self.answer(done)
        window, changes = self.window, self._changes
        assert window is not None
        assert changes is not None
        scene = changes.at(done)
        return None if scene == self._scene else self._prepared(window, scene)

    def until(self, done: int, most: int) -> int:
        """Steps up to the next change, `most` at most."""
        assert self._changes is not None
        return self._changes.until(done, done + most) - done

    def give_up(self) -> None:
        """Answers everybody who still waits for a change."""
        while (asked := self._next_asked()) is not None:
            asked[1].set_exception(
                TooLate("the music is finished: there is nothing left to change")
            )

    # --- Codes --------------------------------------------------------------------------------

    def take(self, steps: np.ndarray, done: int) -> list[Codes]:
        """The frames that have become complete.

        Args:
          steps: int32 `[K, S + 1]` of the slot.
          done: the last step that is complete.
        """
        window = self.window
        assert window is not None
        self.steps_done = self._steps_before + done - window.prompt
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
        """Moves on to the next window."""
        codes = np.concatenate(self._parts, axis=2)
        if window.number and self._prompt is not None:
            codes = np.concatenate([self._prompt, codes], axis=2)
        self._number += 1
        self._parts, self._emitted = [], 0
        self._steps_before += self._steps(window)
        self.steps_done = self._steps_before
        if (following := self.window) is not None:
            self._prompt = prompt_of(following, window, codes)
