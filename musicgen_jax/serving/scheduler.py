"""Decides what runs when: a queue of clips, the slots that they share, and the threads.

    submit -> [prepare: text, melody, style] -> queue -> [device: slots] -> [codec: audio] -> ticket

Only the device's thread touches the slots. A long piece is a row of windows, and after each window
it goes to the end of the queue: it waits for others as they wait for it. A thread of its own ends
clips whose time is up, since the others may be busy for minutes while they compile.
"""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import jax
import numpy as np

from musicgen_jax.conditioning.text import ConditionAt, text_alone
from musicgen_jax.errors import UserError, is_int, is_number
from musicgen_jax.generation.piece import GenerationOutput
from musicgen_jax.generation.request import Request, window_frames
from musicgen_jax.generation.schedule import Cue
from musicgen_jax.generation.windows import Layout, Store
from musicgen_jax.runtime.compile_cache import Compilations, counting
from musicgen_jax.serving.clip import Clip, new_decoder
from musicgen_jax.serving.course import Codes, Course
from musicgen_jax.serving.engine import Engine
from musicgen_jax.serving.shapes import TEXT_TOKENS, Shape, shape_of, shapes_up_to
from musicgen_jax.serving.ticket import Busy, Cancelled, Closing, DeadlinePassed, Ticket
from musicgen_jax.storage.loading import Parts

QUANTUM = 10  # steps between two looks at the queue
_AHEAD = 4.0  # seconds of endless music that may wait for their listener
_LOOK_AGAIN = 0.05  # seconds


class Scheduler:
    """Makes many clips at once with one model. Use it in a `with` statement, or call `close`.

    Args:
      parts: of the model, `model.parts`.
      slots: N, the clips that are made at once. The result of a seed depends on it.
      seconds: the longest clip that will be requested; from the model's window on there is no
        limit, since longer pieces take several windows. Default: the model's window.
      queue: how many clips may wait.
      text: the longest description that will be requested, in tokens.
      negatives: whether negative descriptions will be requested. In a text model they have slots of
        their own.
      shapes: the shapes of the clips that will be requested. Default: those of all clips up to
        `seconds` and `text`, with `negatives`. There are N slots for each shape.
      warm: whether to compile everything now.

    Attributes:
      parts: the model as the slots need it; conditions for `submit` are made from these.
      slots: N.
      programs: the names of the programs, by increasing length of the texts and the caches.
      ready: an event, set once nothing compiles any more. Requests may come before.
      turn: a lock to hold while a program is started, if the model is on several devices.

    Raises:
      UserError: an argument is out of range.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        slots: int,
        seconds: float | None = None,
        queue: int = 32,
        text: int = TEXT_TOKENS,
        negatives: bool = False,
        shapes: Sequence[Shape] | None = None,
        warm: bool = True,
    ):
        config = parts.config
        check_one_process()
        if not is_int(queue) or queue < 1:
            raise UserError(f"queue must be an integer from 1, got {queue!r}")
        self._window, self._longest = window_frames(config), None
        if seconds is not None and int(seconds * config.frame_rate) < self._window:
            self._longest = max(1, int(seconds * config.frame_rate))
        frames = self._longest or self._window
        self._engines = [
            Engine(parts, slots=slots, shape=shape)
            for shape in shapes or shapes_up_to(parts, frames, text, negatives=negatives)
        ]
        self.parts, self.slots = self._engines[0].parts, slots
        self.programs = [engine.program for engine in self._engines]
        self._queue, self._warm = queue, warm
        self.ready = threading.Event()
        self._compilations: Compilations | None = None
        self._counting = contextlib.ExitStack()
        self._changed = threading.Condition()
        self._waiting: list[Clip] = []
        self._tenants: dict[Engine, list[Clip | None]] = {
            engine: [None] * slots for engine in self._engines
        }
        self._open: set[Clip] = set()  # clips whose ticket has not ended
        self._closing: str | None = None  # why no more clips are taken
        self._stopped = False
        # Several threads may start programs in a different order on each of several devices.
        self.turn = threading.Lock() if parts.mesh else contextlib.nullcontext()
        self._codes: SimpleQueue[tuple[Clip, list[Codes]] | None] = SimpleQueue()
        self._prepare = ThreadPoolExecutor(1, "musicgen-jax prepare")
        self._threads = [
            threading.Thread(target=target, name=f"musicgen-jax {name}", daemon=True)
            for name, target in (
                ("device", self._run_device),
                ("codec", self._run_codec),
                ("deadlines", self._run_deadlines),
            )
        ]
        for thread in self._threads:
            thread.start()

    # --- Public ------------------------------------------------------------------------

    def submit(
        self,
        request: Request,
        condition_at: ConditionAt | None = None,
        *,
        deadline: float | None = None,
        on_audio: Callable[[np.ndarray], object] | None = None,
        store: Store | None = None,
        ahead: Callable[[], float] | None = None,
    ) -> Ticket:
        """Requests a clip; returns at once.

        Args:
          request: of one clip.
          condition_at: the condition of each window, one row, made from `parts`; it is called in
            another thread. Default: the description alone.
          deadline: seconds from now after which the clip is given up.
          on_audio: called with each block of audio, float32 [C, n], in the codec's thread, so it
            must return soon. The ticket then keeps no audio: memory does not grow with the piece.
          store: keeps finished windows; those that it already has are not made again.
          ahead: with `on_audio`, for music without an end: returns the seconds that nobody has
            taken yet. The clip waits for its listener, in its slot.

        Raises:
          Busy: the queue is full.
          Closing: nothing is taken any more.
          UserError: the description or the clip is too long, or the deadline is not a time.
        """
        if request.batch != 1:
            raise UserError(f"a slot takes one clip, got a request for {request.batch}")
        if deadline is not None and not (is_number(deadline) and deadline > 0):
            raise UserError(f"deadline must be more than 0 seconds, got {deadline!r}")
        engine = self._engine_for(request)
        if condition_at is None:
            condition_at = text_alone(self.parts)
        course = Course(request, condition_at, engine, store)
        clip = Clip(course, self.parts, deadline)
        if ahead is not None:
            clip.untaken = ahead
        clip.ticket = Ticket(
            course,
            engine.program,
            position=functools.partial(self._place, clip),
            cancel=functools.partial(self._end, clip, Cancelled("the request was cancelled")),
            steer=functools.partial(self._steer, clip),
            on_audio=on_audio,
        )
        with self._changed:
            if self._closing is not None:
                raise Closing(self._closing)
            if self.waiting >= self._queue:
                raise Busy(f"{self._queue} clips are waiting already: try again later")
            self._open.add(clip)
            self._wait(clip)
            self._changed.notify_all()  # it may have the first deadline
        return clip.ticket

    @property
    def busy(self) -> int:
        """Slots with a clip in them."""
        return sum(clip is not None for tenants in self._tenants.values() for clip in tenants)

    @property
    def waiting(self) -> int:
        """Clips that have not begun."""
        with self._changed:
            return sum(not clip.begun for clip in self._waiting)

    @property
    def closing(self) -> str | None:
        """Why no clip is accepted any more (draining, closed or failed), or None."""
        return self._closing

    @property
    def compilations(self) -> int:
        """Programs that this process has compiled or loaded since `ready` was set: 0."""
        counts = self._compilations
        return counts.compiled + counts.loaded if counts else 0

    def drain(self, timeout: float | None = None) -> bool:
        """Accepts nothing more and waits until everything is finished.

        Returns:
          Whether it is; False after `timeout` seconds.
        """
        with self._changed:
            self._closing = self._closing or "the scheduler is about to stop: ask again in a moment"
            return self._changed.wait_for(lambda: not self._open, timeout)

    def close(self) -> None:
        """Cancels everything and ends the threads; a second call does nothing."""
        if self._stopped:
            return
        self._give_up(Cancelled("the scheduler was closed"), "the scheduler has stopped")
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        device, codec, deadlines = self._threads
        device.join()
        deadlines.join()
        self._prepare.shutdown(cancel_futures=True)
        self._codes.put(None)
        codec.join()
        self._counting.close()
        for engine in self._engines:
            engine.close()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # --- The threads --------------------------------------------------------------------------

    def _make_ready(self, clip: Clip) -> None:
        """In the preparation thread: prepares the next window of a clip."""
        try:
            if clip.ended:
                return
            if stored := clip.course.stored():
                self._codes.put((clip, stored))
            if clip.course.window is not None:
                with self.turn:
                    prepared = jax.block_until_ready(clip.course.prepare())
                with self._changed:
                    clip.prepared = prepared
                    self._changed.notify_all()
        except BaseException as error:
            self._end(clip, error)

    def _run_device(self) -> None:
        """The device's thread: puts prepared windows into slots, and runs the slots."""
        try:
            if self._warm:
                self._warm_up()
            self._compilations = self._counting.enter_context(counting())
            self.ready.set()
            while not self._stopped:
                self._fill()
                ran = [self._run_slots(*each) for each in self._tenants.items()]
                if self.busy and not any(ran):  # all wait for their listeners
                    time.sleep(_LOOK_AGAIN)
        except BaseException as error:
            self._give_up(error, f"the model has stopped working: {error}")
            self.ready.set()

    def _fill(self) -> None:
        """Gives free slots to the clips that wait longest; waits if there is nothing to run."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self.busy or self._following())
        while (clip := self._take()) is not None:
            assert clip.prepared is not None
            tenants = self._tenants[clip.course.engine]
            slot = tenants.index(None)
            with self.turn:
                clip.course.engine.insert(slot, clip.prepared)
            clip.prepared, tenants[slot] = None, clip

    def _take(self) -> Clip | None:
        """Takes the next clip for a slot out of the queue."""
        with self._changed:
            clip = None if self._stopped else self._following()
            if clip is not None:
                self._waiting.remove(clip)
                clip.begun = True
            return clip

    def _following(self) -> Clip | None:
        """The first clip that is prepared and for which there is a slot."""
        for clip in self._waiting:
            if clip.prepared is not None and None in self._tenants[clip.course.engine]:
                return clip
        return None

    def _wait(self, clip: Clip) -> None:
        """Puts a clip at the end of the queue."""
        with self._changed:
            if not clip.ended:
                self._waiting.append(clip)
                self._prepare.submit(self._make_ready, clip)

    def _before_steps(self, engine: Engine, slot: int, clip: Clip) -> list[int]:
        """Makes the changes due in a slot, and returns how many steps it may run, if any."""
        course, done = clip.course, engine.done(slot)
        assert course.window is not None
        # A slot that is held repeats its last step. The last step that a window begins with was
        # read at once, and would be rounded otherwise: so a window makes some of its own first.
        begun = done > course.window.prompt
        held = course.request.endless and begun and clip.ahead > _AHEAD
        engine.hold(slot, held)
        if held:
            course.answer(done)  # whoever asked for a change may be who does not listen meanwhile
            return []
        try:
            prepared = course.settle(done)
        except Exception as error:
            self._end(clip, error)
            prepared = None
        if prepared is not None:
            # The beginning of a window is read under the scene of its first step.
            place = engine.insert if done == course.window.prompt else engine.change
            place(slot, prepared)
        return [course.until(done, int(engine.left[slot]))]

    def _run_slots(self, engine: Engine, tenants: list[Clip | None]) -> bool:
        """Runs the slots of an engine up to the next one that is finished, but not for long.

        Returns:
          whether any ran.
        """
        for slot, clip in enumerate(tenants):
            if clip is not None and clip.ended:
                engine.free(slot)
                tenants[slot] = None
        counts = [QUANTUM]
        with self.turn:
            for slot, clip in enumerate(tenants):
                if clip is not None:
                    counts.extend(self._before_steps(engine, slot, clip))
            if len(counts) == 1:
                return False
            engine.run(min(counts))
            steps = engine.read()
        for slot, clip in enumerate(tenants):
            if clip is None:
                continue
            try:
                if codes := clip.course.take(steps[slot], engine.done(slot)):
                    clip.frames_made += sum(each.shape[2] for _, each in codes)
                    self._codes.put((clip, codes))
            except Exception as error:  # a finished window could not be saved
                self._end(clip, error)
            if engine.left[slot] == 0:
                tenants[slot] = None
                if clip.course.window is not None:
                    self._wait(clip)
        return True

    def _run_codec(self) -> None:
        """The thread of the codec."""
        while (item := self._codes.get()) is not None:
            clip, codes = item
            try:
                for window, each in () if clip.ended else codes:
                    with self.turn:
                        blocks = list(clip.decode(window, each))
                    for block in blocks:
                        clip.ticket.add(block)
                    clip.frames_decoded += each.shape[2]
                if clip.complete:
                    self._end(clip, clip.output())
            except BaseException as error:
                self._end(clip, error)

    def _warm_up(self) -> None:
        """Compiles everything that a clip may need."""
        for engine in self._engines:
            engine.warm_up()
        # One frame of the codec: clips of all lengths run the same program.
        layout = Layout(1, window=1, stride=1)
        decoder = new_decoder(self.parts, layout)
        codes = np.zeros((1, self.parts.config.lm.n_q, 1), np.int32)
        for _ in (*decoder.push(layout[0], codes), *decoder.flush()):
            pass

    # --- How a clip ends ----------------------------------------------------------------------

    def _end(self, clip: Clip, end: GenerationOutput | BaseException) -> None:
        """Ends a clip's ticket, unless it has ended already; its slot is freed soon."""
        clip.ticket.finish(end)
        clip.course.give_up()
        with self._changed:
            self._open.discard(clip)
            if clip in self._waiting:
                self._waiting.remove(clip)
            self._changed.notify_all()

    def _give_up(self, error: BaseException, closing: str) -> None:
        """Accepts nothing more, and ends everything."""
        with self._changed:
            self._closing, clips = closing, list(self._open)
        for clip in clips:
            self._end(clip, error)

    def _run_deadlines(self) -> None:
        """The thread of deadlines."""
        while not self._stopped:
            self._expire()
            with self._changed:
                if not self._stopped:
                    self._changed.wait(self._patience())

    def _expire(self) -> None:
        """Ends the clips whose time is up."""
        now = time.monotonic()
        with self._changed:
            late = [clip for clip in self._open if clip.deadline <= now]
        for clip in late:
            self._end(clip, DeadlinePassed("the music was not finished in time"))

    def _patience(self) -> float | None:
        """Seconds to the next deadline."""
        first = min((clip.deadline for clip in self._open), default=math.inf)
        left = first - time.monotonic()
        return None if math.isinf(left) else min(max(0.0, left), threading.TIMEOUT_MAX)

    # --- How a clip changes -------------------------------------------------------------------

    def _steer(self, clip: Clip, cue: Cue) -> "Future[float]":
        engine = clip.course.engine
        ids, _ = self.parts.tokenizer([None, *cue.texts.values()])
        if ids.shape[1] > engine.shape.text:
            raise UserError(
                f"the description has more than {engine.shape.text} tokens: make it shorter"
            )
        if cue.negative_description and self.parts.lm.skip_null_rows and not engine.shape.negatives:
            raise UserError(
                "this music began without a negative description, in slots that take none: begin "
                "with one, in the request or its schedule"
            )
        answer: Future[float] = Future()
        self._prepare.submit(self._make_cue_ready, clip, cue, answer)
        return answer

    def _make_cue_ready(self, clip: Clip, cue: Cue, answer: "Future[float]") -> None:
        """Runs in the preparation thread."""
        try:
            with self.turn:
                clip.course.encode(cue)
        except Exception as error:
            answer.set_exception(error)
            return
        clip.course.ask(cue, answer)
        if clip.ended:
            clip.course.give_up()

    def _place(self, clip: Clip) -> int:
        with self._changed:
            return self._waiting.index(clip) + 1 if clip in self._waiting else 0

    def _engine_for(self, request: Request) -> Engine:
        """The engine of a clip's shape."""
        config = self.parts.config
        if self._longest is not None and request.frames > self._longest:
            raise UserError(
                f"duration must be at most {self._longest / config.frame_rate:g} seconds here, got "
                f"{request.duration!r}"
            )
        shape = shape_of(self.parts, request)
        engines = {engine.shape: engine for engine in self._engines}
        if shape not in engines:
            text = max(each.text for each in engines)
            if shape.text > text:
                raise UserError(f"the description has more than {text} tokens: make it shorter")
            if shape.negatives and not any(each.negatives for each in engines):
                raise UserError("negative descriptions are not taken here")
            raise UserError(f"there are no slots here for a clip of {request.duration:g} seconds")
        return engines[shape]


def check_one_process() -> None:
    """UserError in a program of several processes."""
    if jax.process_count() > 1:
        raise UserError("slots are for one process: threads of several would not keep step")


def scheduler_for(
    parts: Parts, requests: Iterable[Request], *, slots: int, queue: int
) -> Scheduler:
    """A scheduler for some clips, and for others of the same shapes.

    Args:
      parts: as in `Scheduler`.
      requests: each of one clip.
      slots: as in `Scheduler`.
      queue: as in `Scheduler`.
    """
    shapes = sorted({shape_of(parts, request) for request in requests})
    return Scheduler(parts, slots=slots, queue=queue, shapes=shapes, warm=False)
