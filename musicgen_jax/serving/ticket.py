"""A listener's handle on music that is being made: blocks of audio, the result, and cancelling."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.generation.piece import GenerationOutput
from musicgen_jax.generation.program_name import ProgramName
from musicgen_jax.generation.schedule import Cue
from musicgen_jax.serving.course import Course


class Busy(UserError):
    """The queue is full: try again later."""


class Closing(UserError):
    """No more requests are accepted."""


class Cancelled(Exception):
    """The request was cancelled before its music was finished."""


class DeadlinePassed(Exception):
    """The music was not finished in time."""


class Ticket:
    """Music that was requested. All methods may be called from any thread.

    Attributes:
      request: the request.
      program: the name of the program that makes the music.
    """

    def __init__(
        self,
        course: Course,
        program: ProgramName,
        *,
        position: Callable[[], int],
        cancel: Callable[[], None],
        steer: Callable[[Cue], "Future[float]"],
        on_audio: Callable[[np.ndarray], object] | None = None,
    ):
        self.request, self.program = course.request, program
        self._course, self._position, self._cancel = course, position, cancel
        self._steer = steer
        self._dropped = 0  # blocks of endless music that have been taken
        self._on_audio = on_audio
        self._changed = threading.Condition()
        self._blocks: list[np.ndarray] = []
        self._error: BaseException | None = None
        self._output: GenerationOutput | None = None
        self._listener: Callable[[], object] | None = None

    @property
    def position(self) -> int:
        """The place in the queue, from 1; 0 if the clip is in a slot or has ended."""
        return self._position()

    @property
    def steps(self) -> tuple[int, int]:
        """Steps of the language model: those that are done, and all that the piece takes."""
        return self._course.steps_done, self._course.steps_total

    @property
    def done(self) -> bool:
        """Whether the music is finished, has failed or was cancelled."""
        return self._output is not None or self._error is not None

    @property
    def schedule(self) -> tuple[Cue, ...]:
        """All changes so far and those to come, see `Session.schedule`."""
        return self._course.timeline.schedule

    def steer(self, cue: Cue) -> "Future[float]":
        """Changes the music from the next frame that is not made yet.

        Args:
          cue: what changes; its seconds do not matter.

        Returns:
          the second where it takes effect, once that is known: when the clip is in a slot.

        Raises:
          UserError: its text does not fit into the slots, or the music is finished. The future can
            raise it too.
        """
        return self._steer(cue)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields audio as it is made, float32 [C, W], about half a second each, then ends.

        Each iterator begins at the beginning of the piece.

        Raises:
          Exception: as `result`.
        """
        given = 0
        while blocks := self._wait(given):
            given += len(blocks)
            yield from blocks
        if self._error is not None:
            raise self._error

    def blocks(self, start: int = 0) -> list[np.ndarray]:
        """The blocks of audio from number `start` on that exist now, without waiting.

        Earlier blocks are dropped if the music has no end.
        """
        with self._changed:
            return self._taken(start)

    def _taken(self, start: int) -> list[np.ndarray]:
        if self.request.endless:
            del self._blocks[: start - self._dropped]
            self._dropped = start
        return self._blocks[start - self._dropped :]

    @property
    def waiting_blocks(self) -> int:
        """The blocks that nobody has taken."""
        return len(self._blocks)

    def _wait(self, start: int) -> list[np.ndarray]:
        """The blocks from number `start` on, of which there is at least one unless it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._dropped + len(self._blocks) > start or self.done)
            return self._taken(start)

    def listen(self, listener: Callable[[], object]) -> None:
        """Calls `listener()` now, and from another thread after every change: a block, the end.

        It must return at once. In asyncio: `lambda: loop.call_soon_threadsafe(event.set)`.
        """
        self._listener = listener
        listener()

    def result(self, timeout: float | None = None) -> GenerationOutput:
        """Waits for the whole clip: audio [1, C, W], codes [1, K, T] and the program.

        Args:
          timeout: seconds to wait; None for as long as it takes.

        Raises:
          Cancelled: by `cancel`, or because the scheduler was closed.
          DeadlinePassed: see `Scheduler.submit`.
          TimeoutError: `timeout` has passed; the music is still being made.
          Exception: whatever else went wrong.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"the music was not finished within {timeout:g} s")
        if self._error is not None:
            raise self._error
        assert self._output is not None
        return self._output

    def cancel(self) -> None:
        """Cancels the music: its slot is free within two quanta. Does nothing if it is finished."""
        self._cancel()

    def add(self, block: np.ndarray) -> None:
        """For the scheduler: the next block of audio."""
        if self._on_audio is not None:
            self._on_audio(block)
        else:
            with self._changed:
                self._blocks.append(block)
                self._changed.notify_all()
        self._tell()

    def finish(self, end: GenerationOutput | BaseException) -> bool:
        """For the scheduler: how it ended. Only the first end counts; returns whether it did."""
        with self._changed:
            if self.done:
                return False
            if isinstance(end, BaseException):
                self._error = end
            else:
                self._output = end
            self._changed.notify_all()
        self._tell()
        return True

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener()
