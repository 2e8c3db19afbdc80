"""Generation of codes: a prefill, then one compiled loop over steps.

Shapes are rounded up to a few lengths, so that one compilation serves many durations. The tokens of
an example depend on its seed and its index alone: not on the batch, the chunks or the lengths.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicgen_jax.generation import plan
from musicgen_jax.generation.guidance import copies_of
from musicgen_jax.generation.plan import Advance, Emit, Grow, Plan
from musicgen_jax.generation.program import UNKNOWN, Program, Requests
from musicgen_jax.generation.sampling import Mode, Numbers
from musicgen_jax.generation.schedule import Scene
from musicgen_jax.generation.settings import DEFAULT_SAMPLING, Sampling
from musicgen_jax.nn import patterns
from musicgen_jax.nn.condition import Condition
from musicgen_jax.nn.lm import LM
from musicgen_jax.runtime import memory

KEYS = "threefry2x32"  # named explicitly, so that no global setting changes the result of a seed


class Changes(Protocol):
    """What changes while codes are generated, see `windows.WindowChanges`."""

    def condition(self, scene: Scene) -> Condition:
        """The condition of a scene, of the same B rows."""
        ...

    def at(self, step: int) -> Scene:
        """The scene that holds when step + 1 is predicted."""
        ...

    def until(self, step: int, stop: int) -> int:
        """The first step after `step` where something changes, at most `stop`."""
        ...

    def reached(self, step: int) -> None:
        """Called with the last step that is complete."""
        ...


def stream_codes(
    lm: LM,
    condition: Condition,
    *,
    num_frames: int,
    keys: jax.Array,
    prompt: np.ndarray | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    changes: Changes | None = None,
    callback: Callable[[int, int], None] | None = None,
    chunk: int = 0,
    reserve: int = 0,
    lengths: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """Generates codes, guided by a condition and perhaps continuing a prompt, and yields them.

    The codes do not depend on `chunk`, `reserve`, `lengths` or `callback`.

    Args:
      lm: the model.
      condition: B conditional rows; the null rows of guidance are added here. If no row has a
        condition (masks all False, or no parts), the model runs unguided, which gives the same
        codes for half the work.
      num_frames: T, including the prompt.
      keys: B typed keys, one per example, see `example_keys`.
      prompt: int32 `[B, K, Tp]` with Tp < T, the beginning of the result.
      sampling: how tokens are drawn.
      changes: changes of condition and sampling, from some steps on. If a change turns guidance on,
        the model reads everything again.
      callback: called with (steps done, steps to do) every few steps, and once at the end.
      chunk: yield after this many new frames; 0 to yield all of them at the end.
      reserve: compile for at least this many frames, so that the short last window of a long piece
        shares a compilation with the windows before it.
      lengths: successive cache lengths, in steps; each is compiled separately and the last one must
        hold every step. Default: `cache_growth(...)`.

    Yields:
      int32 `[B, K, t]` on the host: all T frames in order, including those of the prompt.
    """
    batch, delays = len(keys), lm.config.delays
    if prompt is None:
        prompt = np.zeros((batch, len(delays), 0), np.int32)
    prompt = np.asarray(prompt, np.int32)
    copies = copies_of(condition, sampling)
    delay = max(delays)
    lengths = lengths or cache_growth(lm, batch * copies, max(num_frames, reserve) + delay)
    pause = lm.tuning.callback_steps if callback else 0
    course = Plan(num_frames, prompt.shape[2], delay, tuple(lengths), chunk, pause)
    slots, start = course.lengths()[0], np.full(batch, course.prompt, np.int32)
    known = known_steps(prompt, num_frames, course.slots[-1], lm)

    program = Program(lm, condition, copies, Mode.of([sampling]))
    limit = np.full(batch, course.total, np.int32)
    numbers = Numbers.of([sampling] * batch)
    requests = Requests(known[:, :, : slots + 1], start, limit, keys, numbers)
    state, context = program.start(requests, min(plan.prefill_length(course.prompt), slots), slots)
    step = course.prompt
    scene = changes.at(step) if changes else None
    for event in course.events():
        match event:
            case Grow(slots):
                state = program.grow(state, known[:, :, : slots + 1], slots)
            case Advance(count):
                stop = step + count
                while step < stop:
                    if changes and (now := changes.at(step)) != scene:
                        scene, condition = now, changes.condition(now)
                        copies = max(copies, copies_of(condition, now.sampling))
                        again = copies > program.copies
                        program = Program(lm, condition, copies, Mode.of([now.sampling]))
                        requests = Requests(
                            program.read(state, batch) if again else None,
                            np.full(batch, step, np.int32),
                            limit,
                            keys,
                            Numbers.of([now.sampling] * batch),
                        )
                        if again:
                            length = min(plan.prefill_length(step), slots)
                            state, context = program.start(requests, length, slots)
                        else:
                            context = program.context(requests)
                    until = changes.until(step, stop) if changes else stop
                    state = program.advance(state, context, until - step)
                    step = until
                if changes:
                    changes.reached(step)
                if callback:
                    state.step.block_until_ready()
                    callback(step - course.prompt, course.total - course.prompt)
            case Emit(first, stop):
                drawn = program.read(state, batch)[:, :, first:stop]
                if stop > course.total:  # the codec comes next and needs the memory
                    del state, context
                    memory.give_back()
                yield patterns.to_codes(drawn, delays)


def generate_codes(
    lm: LM,
    condition: Condition,
    *,
    num_frames: int,
    keys: jax.Array,
    prompt: np.ndarray | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    callback: Callable[[int, int], None] | None = None,
    chunk: int = 0,
    reserve: int = 0,
    lengths: Sequence[int] | None = None,
) -> np.ndarray:
    """Everything that `stream_codes` yields, as one array int32 `[B, K, T]`."""
    parts = stream_codes(
        lm,
        condition,
        num_frames=num_frames,
        keys=keys,
        prompt=prompt,
        sampling=sampling,
        callback=callback,
        chunk=chunk,
        reserve=reserve,
        lengths=lengths,
    )
    return np.concatenate(list(parts), axis=2)


def example_keys(seed: int | Sequence[int], batch: int, first: int = 0) -> jax.Array:
    """B typed keys: examples from `first` on of one seed, or example 0 of each of B seeds."""
    if isinstance(seed, int | np.integer):
        pairs = [(int(seed), first + i) for i in range(batch)]
    else:
        pairs = [(int(s), 0) for s in seed]
    key = partial(jax.random.key, impl=KEYS)
    return jnp.stack([jax.random.fold_in(key(s), i) for s, i in pairs])


def cache_growth(lm: LM, rows: int, steps: int) -> tuple[int, ...]:
    """The successive lengths of a cache with this many rows, for up to this many steps."""
    step_bytes = memory.nbytes(jax.eval_shape(lambda lm: lm.init_cache(rows, 1), lm))
    return plan.growth(steps, step_bytes, memory.nbytes(nnx.state(lm, nnx.Param)), lm.tuning)


def known_steps(prompt: np.ndarray, num_frames: int, slots: int, lm: LM) -> np.ndarray:
    """`[B, K, slots + 1]`: the prompt laid out, UNKNOWN for codes to come, else special tokens."""
    missing = ((0, 0), (0, 0), (0, num_frames - prompt.shape[2]))
    codes = np.pad(prompt, missing, constant_values=UNKNOWN)
    steps = patterns.to_steps(codes, lm.config.delays, lm.config.special_token)
    after = ((0, 0), (0, 0), (0, slots + 1 - steps.shape[2]))
    return np.pad(steps, after, constant_values=lm.config.special_token)
