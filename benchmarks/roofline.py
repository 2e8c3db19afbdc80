"""Bounds on paper, from the data sheets of accelerators; nothing here was run.

Question: how fast could a step be on a device, and how many listeners could it serve? A step of
batch B with guidance reads every weight and 2 B rows of keys and values, and does two operations
per weight and row. It takes at least bytes / bandwidth, and at least operations / peak. A listener
needs 50 frames of music a second, in a window of 30 s (a cache of 1504 steps).

    python benchmarks/roofline.py --efficiency 0.6 --listeners 1000

`scaling.py` measures how near a step comes to these bounds on this machine, and why.
"""

import argparse
import dataclasses
import math

import jax
import jax.numpy as jnp
import lm_steps
from flax import nnx

from musicgen_jax.config import OFFICIAL_MODELS
from musicgen_jax.nn.lm import LM

WINDOW = 1500  # steps of 30 s


@dataclasses.dataclass(frozen=True)
class Device:
    """Numbers from the maker's data sheet."""

    name: str
    bandwidth: float  # bytes per second of its memory
    peak: float  # dense bfloat16 operations per second
    memory: float  # bytes


DEVICES = (
    Device("TPU v5e", 819e9, 197e12, 16e9),
    Device("TPU v6e", 1640e9, 918e12, 32e9),
    Device("H100 SXM", 3350e9, 989e12, 80e9),
    Device("H200", 4800e9, 989e12, 141e9),
)


@dataclasses.dataclass(frozen=True)
class Step:
    """The needs of one step of a batch, in bfloat16."""

    held: int  # bytes of all weights of the language model
    weights: int  # bytes of the weights that a step reads
    cache: int  # bytes per clip, both rows
    rows: int  # per clip

    @classmethod
    def of(cls, size: str) -> "Step":
        """For an official size, from the shapes of the model itself."""
        config = OFFICIAL_MODELS[f"facebook/musicgen-{size}"].lm
        types = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
        lm = nnx.eval_shape(lambda: LM(config, **types, rngs=nnx.Rngs(0)))
        moved = lm_steps.bytes_per_step(lm, 1, WINDOW)
        # On a CPU, where this runs, the cache of a bfloat16 model is wider.
        cache = moved["cache"] * 2 // jnp.dtype(lm.cache_dtype).itemsize
        return cls(moved["held"], moved["weights"], cache, 2)

    def seconds(self, device: Device, batch: int, efficiency: float) -> float:
        """The least time, at `efficiency` of bandwidth and peak."""
        memory = (self.weights + batch * self.cache) / device.bandwidth
        compute = 2 * (self.weights / 2) * self.rows * batch / device.peak
        return max(memory, compute) / efficiency

    def largest_batch(self, device: Device) -> int:
        """Clips whose caches fit next to the weights in nine tenths of the memory."""
        return max(0, math.floor((0.9 * device.memory - self.held) / self.cache))


def listeners(step: Step, device: Device, efficiency: float, frame_rate: float = 50.0) -> int:
    """The most clips that all advance at `frame_rate` steps a second on one device."""
    fit = 0
    for batch in range(1, step.largest_batch(device) + 1):
        if 1 / step.seconds(device, batch, efficiency) < frame_rate:
            break
        fit = batch
    return fit


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs="+", default=["small", "medium", "large"])
    parser.add_argument("--efficiency", type=float, default=0.6, help="of bandwidth and peak")
    parser.add_argument("--listeners", type=int, default=1000, help="to serve at once")
    args = parser.parse_args(argv)
    print(f"on paper, at {args.efficiency:.0%} of the data sheet; bfloat16, {jax.__version__=}")
    head = ("model", "device", "steps/s at batch 1", "at batch 8", "listeners a device")
    print(f"| {' | '.join(head)} | devices for {args.listeners} |")
    print("|" + "---|" * (len(head) + 1))
    rows = []
    for size in args.size:
        step = Step.of(size)
        for device in DEVICES:
            one, eight = (
                1 / step.seconds(device, b, args.efficiency)
                if step.largest_batch(device) >= b
                else None
                for b in (1, 8)
            )
            most = listeners(step, device, args.efficiency)
            needed = math.ceil(args.listeners / most) if most else None
            row = {
                "size": size,
                "device": device.name,
                "batch_1": one,
                "batch_8": eight,
                "listeners": most,
                "devices": needed,
            }
            rows.append(row)
            cells = [f"{x:.0f}" if x else "does not fit" for x in (one, eight)]
            cells += [str(most), str(needed or "-")]
            print(f"| {size} | {device.name} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
