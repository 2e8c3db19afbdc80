"""The memory that slots and their clips need, checked at the start and not at the ninth request."""

import dataclasses
from functools import partial

import jax

from musicgen_jax.errors import UserError
from musicgen_jax.generation.request import window_frames
from musicgen_jax.runtime import memory
from musicgen_jax.serving.shapes import TEXT_TOKENS, prefix_length, shapes_up_to
from musicgen_jax.storage.loading import Parts


@dataclasses.dataclass(frozen=True)
class Reservation:
    """Bytes next to the weights.

    Attributes:
      slots: keys and values of all slots, on the device.
      clips: samples of all clips that are made or wait, on the host.
    """

    slots: int
    clips: int

    @classmethod
    def of(
        cls, parts: Parts, *, slots: int, seconds: float, queue: int, negatives: bool = False
    ) -> "Reservation":
        """The reservation of a `Scheduler` with these arguments."""
        config, lm = parts.config, parts.lm
        frames = min(window_frames(config), max(1, int(seconds * config.frame_rate)))
        rows = slots * (3 if config.lm.hears else 2)
        cache = 0
        for shape in shapes_up_to(parts, frames, TEXT_TOKENS, negatives=negatives):
            length = shape.steps + prefix_length(config, shape.text)
            cache += memory.nbytes(jax.eval_shape(partial(lm.init_cache, rows, length)))
        # A new clip is prepared outside of the slots and then copied into its own.
        tenant = cache // slots
        clip = 4 * config.audio_channels * int(seconds * config.sample_rate)
        return cls(cache + tenant, 2 * clip * (slots + queue))  # as blocks, and joined

    def check(self) -> None:
        """UserError if this machine does not have enough memory."""
        stats = jax.devices()[0].memory_stats() or {}
        limit = stats.get("bytes_limit")
        if limit is None:  # a CPU: one memory for both
            _check(self.slots + self.clips, memory.available(), "memory")
            return
        free = limit - stats.get("bytes_in_use", 0)
        _check(self.slots, free, f"memory of the device ({_size(limit)})")
        _check(self.clips, memory.available(), "memory of the machine")


def _check(needed: int, free: int | None, what: str) -> None:
    if free is not None and needed > free:
        raise UserError(
            f"the slots need {_size(needed)} in addition to the weights, but only {_size(free)} "
            f"of the {what} are free: take fewer --slots, a shorter --max-duration and "
            "--max-job-duration, a smaller --queue, or --no-negatives"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
