"""Clips in slots without threads: several processes that run this keep step.

Only the requests decide what runs next. So processes that share a model start the same programs in
the same order. The clips are those of a `Scheduler` with as many slots.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from musicgen_jax.conditioning.text import text_alone
from musicgen_jax.errors import UserError
from musicgen_jax.generation.piece import GenerationOutput
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.windows import assemble
from musicgen_jax.serving.clip import new_decoder
from musicgen_jax.serving.course import Codes, Course
from musicgen_jax.serving.engine import Engine
from musicgen_jax.serving.shapes import Shape, name_program, shape_of
from musicgen_jax.storage.loading import Parts


def make_clips(
    parts: Parts, requests: Sequence[Request], *, slots: int
) -> Iterator[tuple[int, GenerationOutput]]:
    """Makes clips, shape after shape.

    Args:
      parts: of the model.
      requests: each of one clip, whose description alone conditions it.
      slots: N, the clips that are made at once. The result of a seed depends on it.

    Returns:
      yields the index of each request with its audio [1, C, W], codes [1, K, T] and program.

    Raises:
      UserError: at once, `slots` is out of range, or a request is not for one clip.
    """
    by_shape: dict[Shape, list[int]] = {}
    for index, request in enumerate(requests):
        if request.batch != 1:
            raise UserError(f"a slot takes one clip, got a request for {request.batch}")
        by_shape.setdefault(shape_of(parts, request), []).append(index)
    for shape in by_shape:
        name_program(parts, slots, shape)  # refuses a number that is out of range
    return _of_shapes(parts, requests, slots, by_shape)


def _of_shapes(
    parts: Parts, requests: Sequence[Request], slots: int, by_shape: dict[Shape, list[int]]
) -> Iterator[tuple[int, GenerationOutput]]:
    for shape, indices in sorted(by_shape.items()):
        engine = Engine(parts, slots=slots, shape=shape)
        try:
            yield from _of_one_shape(engine, iter([(i, requests[i]) for i in indices]))
        finally:
            engine.close()


def _of_one_shape(
    engine: Engine, waiting: Iterator[tuple[int, Request]]
) -> Iterator[tuple[int, GenerationOutput]]:
    tenants: dict[int, _Tenant] = {}
    condition_at = text_alone(engine.parts)
    while True:
        for slot in range(engine.slots):
            if slot not in tenants and (following := next(waiting, None)) is not None:
                index, request = following
                tenants[slot] = _Tenant(index, Course(request, condition_at, engine, None))
                engine.insert(slot, tenants[slot].course.prepare())
        if not tenants:
            return
        engine.run(min(tenant.before_steps(slot) for slot, tenant in tenants.items()))
        steps = engine.read()
        for slot, tenant in list(tenants.items()):
            tenant.take(steps[slot], engine.done(slot))
            if engine.left[slot]:
                continue
            if tenant.course.window is not None:
                engine.insert(slot, tenant.course.prepare())
            else:
                del tenants[slot]
                yield tenant.index, tenant.output()


class _Tenant:
    """A clip in a slot, from its first step to its audio."""

    def __init__(self, index: int, course: Course):
        self.index, self.course = index, course
        self._decoder = new_decoder(course.engine.parts, course.request.windows)
        self._pieces: list[Codes] = []
        self._blocks: list[np.ndarray] = []  # float32 [1, C, n]

    def before_steps(self, slot: int) -> int:
        """Makes the changes that are due in the slot, and returns how many steps it may run."""
        course, engine = self.course, self.course.engine
        done = engine.done(slot)
        if (prepared := course.settle(done)) is not None:
            assert course.window is not None
            # The beginning of a window is read under the scene of its first step.
            place = engine.insert if done == course.window.prompt else engine.change
            place(slot, prepared)
        return course.until(done, int(engine.left[slot]))

    def take(self, steps: np.ndarray, done: int) -> None:
        """Takes the frames that have become complete, and makes their audio."""
        for window, codes in self.course.take(steps, done):
            self._pieces.append((window, codes))
            self._blocks.extend(self._decoder.push(window, codes))

    def output(self) -> GenerationOutput:
        """The whole result."""
        self._blocks.extend(self._decoder.flush())
        return GenerationOutput(
            np.concatenate(self._blocks, axis=2),
            assemble(self._pieces),
            self.course.request.config.sample_rate,
            self.course.engine.program,
            self.course.timeline.schedule,
        )
