"""The course of a generation in integers: which events run when, without a model."""

import dataclasses
from collections.abc import Iterator

from musicgen_jax.runtime.tuning import Tuning


@dataclasses.dataclass(frozen=True)
class Grow:
    """The cache gets longer."""

    slots: int  # its new length


@dataclasses.dataclass(frozen=True)
class Advance:
    """The model runs some steps."""

    count: int


@dataclasses.dataclass(frozen=True)
class Emit:
    """The steps from `start` to before `stop` hold whole frames that have not been emitted yet."""

    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The events of one generation, one after the other.

    Attributes:
      num_frames: T, including the prompt.
      prompt: the first frames, which are known; fewer than T.
      delay: the largest delay of a codebook, in steps.
      slots: successive lengths of the cache, in steps; the last one holds `total`.
      chunk: new frames between two `Emit`s; 0 for a single `Emit` at the end.
      pause: the most steps of an `Advance`; 0 for no limit.
    """

    num_frames: int
    prompt: int
    delay: int
    slots: tuple[int, ...]
    chunk: int = 0
    pause: int = 0

    @property
    def total(self) -> int:
        """The last step, after which every codebook of every frame is known."""
        return self.num_frames + self.delay

    def events(self) -> Iterator[Grow | Advance | Emit]:
        """Yields the events in order.

        The cache begins with the first length that is longer than the prompt.
        """
        done, emitted = self.prompt, 0
        lengths = iter(self.lengths())
        slots = next(lengths)
        while done < self.total:
            if done == slots:
                slots = next(lengths)
                yield Grow(slots)
            # The most delayed codebook is `delay` steps behind the first one.
            ready = max(emitted, self.prompt) + (self.chunk or self.total) + self.delay
            due = min(ready, self.total)
            stop = min(due, slots, done + (self.pause or self.total))
            yield Advance(stop - done)
            done = stop
            if done == due:
                yield Emit(emitted, done + 1)
                emitted = done - self.delay

    def lengths(self) -> tuple[int, ...]:
        """The lengths that the cache really has."""
        return tuple(n for n in self.slots if n > self.prompt)


def cache_lengths(steps: int, tuning: Tuning) -> tuple[int, ...]:
    """All lengths that caches for up to this many steps are compiled for; the last one holds all.

    Args:
      steps: at least 1.
      tuning: its `cache_lengths` are used, then multiples of 512.
    """
    longest = next((n for n in tuning.cache_lengths if n >= steps), -(-steps // 512) * 512)
    return (*(n for n in tuning.cache_lengths if n < longest), longest)


def growth(steps: int, step_bytes: int, model_bytes: int, tuning: Tuning) -> tuple[int, ...]:
    """The successive lengths of one cache for up to this many steps.

    One length, unless the cache is large next to the model: then it begins short and grows, so that
    fewer unused slots are read.

    Args:
      steps: at least 1.
      step_bytes: what one step takes in the cache, in all layers and rows.
      model_bytes: the size of the model.
      tuning: decides which cache is large.
    """
    share, least = tuning.grow_cache_above
    limit = max(share * model_bytes, least)
    lengths = cache_lengths(steps, tuning)
    if step_bytes * lengths[-1] <= limit:
        return lengths[-1:]
    first = (n for n in tuning.first_cache_lengths if n < lengths[0] and step_bytes * n > limit)
    return (*first, *lengths)


def prefill_length(steps: int) -> int:
    """The known steps, rounded up to a power of two from 16 on, above 256 to multiples of 256."""
    if steps > 256:
        return -(-steps // 256) * 256
    return 1 << max(steps - 1, 15).bit_length() if steps else 0
