"""A training step on many accelerators, on paper: memory per device and seconds; nothing was run.

Question: does an official model's training fit on a slice, and how long does a step take? It uses
FSDP over all devices, rematerialised blocks, bfloat16 with float32 parameters, AdamW and a moving
average. Counted per device are:

- persistent state: parameters, two moments, the average and gradients, 20 bytes a parameter,
  divided by the number of devices;
- blocks in transit: two gathered in bfloat16, one with its float32 gradients;
- activations: every block's input, and for the one block in progress its attention scores (three
  arrays of float32 [B, N, S, S]) and hidden layers;
- logits and their gradients: four arrays of float32 [B, K, S, V].

    python benchmarks/train_roofline.py --size large --device "TPU v5e" --devices 64

A step costs 8 operations per parameter of the blocks (2 forwards, 2 recomputed, 4 backwards), plus
those of attention. Each device receives every block in bfloat16 twice and sends its gradients once.
The compiler can overlap that with computation, so the larger of both times counts.
"""

import argparse
import dataclasses

import jax
import numpy as np
from flax import nnx
from roofline import DEVICES, Device

from musicgen_jax.config import OFFICIAL_MODELS, LMConfig
from musicgen_jax.nn.lm import LM

# Bytes per second that a device receives from all its neighbours, of the makers' data sheets.
LINKS = {"TPU v5e": 200e9, "TPU v6e": 448e9, "H100 SXM": 450e9, "H200": 450e9}
TEXT = 64  # tokens


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """What one step needs of each of `devices` devices.

    Attributes:
      config: of the language model.
      batch: examples of a step, all devices together.
      frames: of an example.
      devices: how many.
      accumulate: parts that a batch is worked through in.
    """

    config: LMConfig
    batch: int
    frames: int
    devices: int
    accumulate: int = 1

    def parameters(self) -> tuple[int, int]:
        """Of the language model: all, and those of one block."""
        lm = nnx.eval_shape(lambda: LM(self.config, rngs=nnx.Rngs(0)))
        params = nnx.to_pure_dict(nnx.state(lm, nnx.Param))
        count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))  # noqa: E731
        return count(params), count(params["transformer"]["layers"][0])

    def memory(self) -> dict[str, float]:
        """Bytes on each device."""
        config, (whole, block) = self.config, self.parameters()
        rows = self.batch / self.devices / self.accumulate
        inputs = rows * self.frames * config.dim * 2
        scores = rows * config.num_heads * self.frames**2 * 4
        hidden = rows * self.frames * (8 * config.dim + 3 * config.ffn_dim) * 4
        return {
            "what stays": 20 * whole / self.devices,
            "blocks on their way": 2 * 2 * block + 4 * block,
            "activations": config.num_layers * inputs + 3 * scores + hidden,
            "logits": 4 * rows * config.n_q * self.frames * config.card * 4,
        }

    def operations(self) -> float:
        """Of a step, on all devices together."""
        config, (_, block) = self.config, self.parameters()
        tokens = self.batch * self.frames
        heads = config.n_q * config.card * config.dim
        attention = 4 * config.dim * (self.frames + TEXT) * config.num_layers  # forwards, a token
        return tokens * (8 * block * config.num_layers + 6 * heads + 4 * attention)

    def seconds(self, device: Device, efficiency: float) -> tuple[float, float]:
        """Of computing and of exchanging, at a share of what the data sheets promise."""
        whole, _ = self.parameters()
        compute = self.operations() / self.devices / device.peak / efficiency
        exchanged = (2 * 2 + 2) * whole * self.accumulate * (1 - 1 / self.devices)
        return compute, exchanged / LINKS[device.name] / efficiency


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="large", choices=["small", "medium", "large"])
    parser.add_argument("--device", default="TPU v5e", choices=sorted(LINKS))
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--efficiency", type=float, default=0.5, help="of peak and links")
    args = parser.parse_args(argv)
    device = next(device for device in DEVICES if device.name == args.device)
    config = OFFICIAL_MODELS[f"facebook/musicgen-{args.size}"].lm
    step = TrainStep(config, args.batch, args.frames, args.devices, args.accumulate)
    memory = step.memory()
    compute, exchange = step.seconds(device, args.efficiency)
    print(f"{args.size} on {args.devices} {args.device}, on paper at {args.efficiency:.0%}")
    for name, size in memory.items():
        print(f"  {name}: {size / 1e9:.2f} GB")
    total = sum(memory.values())
    fits = "fits" if total < 0.9 * device.memory else "does not fit"
    print(f"  together: {total / 1e9:.2f} GB of {device.memory / 1e9:.0f} GB: {fits}")
    seconds = max(compute, exchange)
    print(f"  a step: {compute:.2f} s of computing, {exchange:.2f} s of exchanging")
    print(f"  {args.steps} steps: {seconds * args.steps / 86400:.1f} days")
    return {"memory": memory, "compute": compute, "exchange": exchange}


if __name__ == "__main__":
    main()
