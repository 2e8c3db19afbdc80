"""One clip in the scheduler: its way through the slots, its audio, its ticket."""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np

from musicgen_jax.generation.joins import PieceDecoder
from musicgen_jax.generation.piece import GenerationOutput
from musicgen_jax.generation.windows import Layout, Window, assemble
from musicgen_jax.serving.course import Codes, Course
from musicgen_jax.serving.engine import Prepared
from musicgen_jax.serving.ticket import Ticket
from musicgen_jax.storage.loading import Parts

BLOCK_SECONDS = 0.5  # of audio that the codec makes at a time; the samples depend on this number


class Clip:
    """The state of one clip in the scheduler's threads.

    Args:
      course: its windows.
      parts: of the model.
      deadline: seconds from now after which the clip is given up, or None.

    Attributes:
      ticket: the listener's handle; the scheduler sets it.
      deadline: a time of `time.monotonic()`.
      prepared: the clip's next window, once that is ready for a slot.
      begun: whether it has been in a slot.
      complete: whether all its audio has been made.
      frames_made: frames made by the language model, not read from a store.
      frames_decoded: how many of these are decoded.
      untaken: returns the seconds of audio that the listener has not taken.
    """

    ticket: Ticket

    def __init__(self, course: Course, parts: Parts, deadline: float | None):
        self.course = course
        self.deadline = math.inf if deadline is None else time.monotonic() + deadline
        self.prepared: Prepared | None = None
        self.begun = self.complete = False
        self._pieces: list[Codes] = []
        self._frames = 0  # of the window whose codes came last
        self.frames_made = self.frames_decoded = 0
        self.untaken: Callable[[], float] = self._waiting_seconds
        self._decoder = new_decoder(parts, course.request.windows)

    def _waiting_seconds(self) -> float:
        return self.ticket.waiting_blocks * BLOCK_SECONDS

    @property
    def ahead(self) -> float:
        """The seconds that have been made and not been taken."""
        rate = self.course.request.config.frame_rate
        return (self.frames_made - self.frames_decoded) / rate + self.untaken()

    @property
    def ended(self) -> bool:
        """Whether nobody wants more audio."""
        return self.ticket.done

    def decode(self, window: Window, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Takes the next codes, in order, and yields blocks of audio, float32 [C, n]."""
        if not self._pieces or self._pieces[-1][0] != window:
            self._frames = window.prompt if window.number else 0
        self._frames += codes.shape[2]
        if self.course.request.endless:
            self._pieces.clear()
        self._pieces.append((window, codes))
        for block in self._decoder.push(window, codes):
            yield block[0]
        if window == self.course.request.windows[-1] and self._frames == window.length:
            for block in self._decoder.flush():
                yield block[0]
            self.complete = True

    def output(self) -> GenerationOutput:
        """The whole result."""
        config = self.course.request.config
        nothing = np.zeros((config.audio_channels, 0), np.float32)
        audio = np.concatenate([nothing, *self.ticket.blocks()], axis=1)[None]
        codes = assemble(self._pieces)
        program, schedule = self.ticket.program, self.ticket.schedule
        return GenerationOutput(audio, codes, config.sample_rate, program, schedule)


def new_decoder(parts: Parts, windows: Layout) -> PieceDecoder:
    """The codec of one clip: for all lengths the same program, at batch 1."""
    block = max(1, round(BLOCK_SECONDS * parts.config.frame_rate))
    channels = parts.config.audio_channels
    return PieceDecoder(parts.encodec, windows, channels=channels, block=block, one_program=True)
