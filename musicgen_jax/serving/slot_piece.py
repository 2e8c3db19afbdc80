"""The B clips of one call, made in slots: the work of `MusicGen.generate(..., slots=N)`."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from musicgen_jax.conditioning.text import ConditionAt
from musicgen_jax.errors import UserError
from musicgen_jax.generation.piece import GenerationOutput, OnAudio, open_store
from musicgen_jax.generation.progress import Progress, progress_callback
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.schedule import Cue, TooLate
from musicgen_jax.generation.windows import Store, Window
from musicgen_jax.serving.scheduler import check_one_process, scheduler_for
from musicgen_jax.serving.shapes import name_program, shape_of
from musicgen_jax.serving.ticket import Ticket
from musicgen_jax.storage.loading import Parts

# The condition of each window, for some of the rows of a request.
Conditions = Callable[[Parts, Request, slice], ConditionAt]


def generate_in_slots(
    parts: Parts,
    request: Request,
    conditions: Conditions,
    *,
    slots: int,
    progress: Progress = False,
    on_audio: OnAudio | None = None,
) -> GenerationOutput:
    """`generation.piece.generate_piece` in slots; the arguments are also those of `SlotPiece`."""
    piece = SlotPiece(parts, request, conditions, slots=slots)
    stretches = [np.zeros((request.batch, parts.config.audio_channels, 0), np.float32)]
    with progress_callback(progress) as callback:
        for stretch in piece.stretches(callback):
            (on_audio or stretches.append)(stretch)
    assert piece.output is not None
    return dataclasses.replace(piece.output, audio=np.concatenate(stretches, axis=2))


class SlotPiece:
    """The clips of one request, each in a slot as soon as there is one.

    Each clip is made on its own, from the text encoder to the codec, as a server would make it.

    Args:
      parts: of the model.
      request: B clips.
      conditions: called with the parts of the slots, a request for one clip, and its row.
      slots: N.

    Attributes:
      output: the whole result without audio, once `stretches` has ended. `program` is the
        first clip's; those of other clips differ at most in the length of the text.

    Raises:
      UserError: `slots` is out of range, or the folder of finished windows cannot be used.
    """

    def __init__(self, parts: Parts, request: Request, conditions: Conditions, *, slots: int):
        check_one_process()
        self._parts, self._request, self._conditions = parts, request, conditions
        self._clips = [request.clip(i) for i in range(request.batch)]
        program = name_program(parts, slots, shape_of(parts, self._clips[0]))
        everything = conditions(parts, request, slice(None))  # checks what it was made from
        self._slots, self._store = slots, None
        if request.checkpoint is not None:
            self._store = _Rows(open_store(parts, request, everything, program), request.batch)
        self._timeline = request.timeline()  # until there are tickets
        self._tickets: list[Ticket] = []
        self.output: GenerationOutput | None = None

    @property
    def schedule(self) -> tuple[Cue, ...]:
        """All changes, see `Session.schedule`."""
        return self._tickets[0].schedule if self._tickets else self._timeline.schedule

    def steer(self, cue: Cue) -> float:
        """Adds a cue at the next frame that is not made, and returns that frame's second.

        Raises:
          UserError: as `Piece.steer`, or there are several clips, each at a frame of its own.
        """
        if len(self._clips) > 1:
            raise UserError("in slots one clip can be steered, or several without slots")
        if self._store is not None:
            raise UserError("a piece with a checkpoint cannot be steered: give it a schedule")
        if not self._tickets:
            raise UserError("the music has not begun: ask for its first chunk, or give a schedule")
        if self._tickets[0].done:
            raise TooLate("the music is finished: there is nothing left to change")
        return self._tickets[0].steer(cue).result()

    def stretches(self, callback: Callable[[int, int], None] | None = None) -> Iterator[np.ndarray]:
        """Makes the clips, and yields audio once all of them have reached it, float32 [B, C, n].

        Args:
          callback: called with (steps done, steps to do), over all clips.
        """
        changed = threading.Event()
        batch = self._request.batch
        hop = self._parts.config.encodec.hop_length
        chunk = max(1, self._request.chunk_frames * hop)  # samples
        heard: list[list[np.ndarray]] = [[] for _ in range(batch)]
        with scheduler_for(self._parts, self._clips, slots=self._slots, queue=batch) as scheduler:
            self._tickets = tickets = [
                scheduler.submit(
                    clip,
                    self._conditions(scheduler.parts, clip, slice(i, i + 1)),
                    on_audio=heard[i].append,
                    store=None if self._store is None else self._store.row(i),
                    ahead=partial(_seconds, heard[i], self._parts.config.sample_rate),
                )
                for i, clip in enumerate(self._clips)
            ]
            for ticket in tickets:
                ticket.listen(changed.set)
            finished = False
            while not finished:
                changed.wait()
                changed.clear()
                finished = all(ticket.done for ticket in tickets)
                for ticket in tickets:
                    if ticket.done:
                        ticket.result()  # raises what went wrong, before anybody waits for it
                if callback:
                    callback(*map(sum, zip(*(ticket.steps for ticket in tickets), strict=True)))
                yield from _in_step(heard, 1 if finished else chunk)
            outputs = [ticket.result() for ticket in tickets]
        self.output = GenerationOutput(
            np.concatenate([output.audio for output in outputs]),
            np.concatenate([output.codes for output in outputs]),
            outputs[0].sample_rate,
            outputs[0].program,
            outputs[0].schedule,
        )


def _seconds(blocks: list[np.ndarray], rate: int) -> float:
    """The total length of blocks of audio, to which the codec's thread may be adding."""
    return sum(block.shape[1] for block in list(blocks)) / rate


def _in_step(heard: list[list[np.ndarray]], chunk: int) -> Iterator[np.ndarray]:
    """Takes from all clips the audio that each of them has, in whole chunks, float32 [B, C, n]."""
    ready = min(sum(block.shape[1] for block in blocks) for blocks in heard) // chunk * chunk
    if not ready:
        return
    rows = []
    for blocks in heard:
        count = len(blocks)  # the codec's thread adds to the end
        audio = np.concatenate(blocks[:count], axis=1)
        blocks[:count] = [audio[:, ready:]]
        rows.append(audio[:, :ready])
    yield np.stack(rows)


class _Rows:
    """A store of B clips, for clips that finish their windows at different times."""

    def __init__(self, store: Store, batch: int):
        self._store, self._batch = store, batch
        self._found: dict[int, np.ndarray | None] = {}
        self._made: dict[int, dict[int, np.ndarray]] = {}  # by window, then by clip

    def row(self, index: int) -> Store:
        """The store of one clip."""
        return _Row(self, index)

    def load(self, window: Window, index: int) -> np.ndarray | None:
        """The window of one clip, int32 [1, K, t], or None."""
        if window.number not in self._found:
            self._found[window.number] = self._store.load(window)
        codes = self._found[window.number]
        return None if codes is None else codes[index : index + 1]

    def save(self, window: Window, index: int, codes: np.ndarray) -> None:
        """Keeps the window of one clip; it is written when all clips have made theirs."""
        made = self._made.setdefault(window.number, {})
        made[index] = codes
        if len(made) == self._batch:
            self._store.save(window, np.concatenate([made[i] for i in range(self._batch)]))
            del self._made[window.number]


class _Row:
    """A `windows.Store` of one clip."""

    def __init__(self, rows: _Rows, index: int):
        self._rows, self._index = rows, index

    def load(self, window: Window) -> np.ndarray | None:
        """As in `windows.Store`."""
        return self._rows.load(window, self._index)

    def save(self, window: Window, codes: np.ndarray) -> None:
        """As in `windows.Store`."""
        self._rows.save(window, self._index, codes)
