"""How libtpu compiles our programs for TPUs; nothing here runs on a TPU.

Question: do the programs fit, does the decode loop move or widen arrays that it should only read,
and how many cycles does the compiler estimate? `libtpu` compiles for a TPU that is not there, so
this needs no accelerator. The cycles are the compiler's own estimate of each kernel's time, without
the copies that overlap with other work. Use them to compare two ways of writing the same step; they
do not promise a speed.

    pip install 'musicgen-jax[tpu]'
    export JAX_PLATFORMS=cpu
    python benchmarks/tpu_compile.py --size small --batch 64
    python benchmarks/tpu_compile.py --size small --batch 64 --heads-apart
    python benchmarks/tpu_compile.py --program codec --frames 500
    python benchmarks/tpu_compile.py --program train --size large --topology v5e:8x8 --batch 128
"""

import dataclasses
import importlib.metadata
import os
import re
import time

# On a TPU, libtpu would ask the machine's metadata server for these.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several may compile at once

import compiled_programs
import jax
import jax.numpy as jnp
import measuring
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from musicgen_jax.config import OFFICIAL_MODELS, MusicGenConfig
from musicgen_jax.runtime import sharding
from musicgen_jax.runtime.tuning import TPU
from musicgen_jax.training import lm as lm_training
from musicgen_jax.training.batch import Batch
from musicgen_jax.training.layout import Layout
from musicgen_jax.training.optimizer import OptimizerConfig

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def devices(topology: str) -> list:
    """The devices of a slice such as "v5e:2x2", as the compiler describes them."""
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def train_step(
    model: MusicGenConfig, topology: str, *, batch: int, frames: int, accumulate: int
) -> jax.stages.Lowered:
    """A training step with FSDP over a whole slice, in bfloat16, rematerialised."""
    grid = np.array(devices(topology)).reshape(-1, 1)
    mesh = Mesh(grid, (sharding.DATA, sharding.MODEL), axis_types=(AxisType.Auto,) * 2)
    layout = Layout(mesh, fsdp=True)
    config = lm_training.LMTrainConfig(
        phases=(lm_training.Phase(steps=100, frames=frames, batch_size=batch),),
        optimizer=OptimizerConfig(muon=False),
        dtype="bfloat16",
        accumulate=accumulate,
        remat=True,
        ema_decay=0.99,
    )
    state = lm_training.abstract_state(model, config, layout)
    rows = NamedSharding(mesh, P(sharding.DATA))

    def rows_of(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    examples = Batch(
        codes=rows_of((batch, model.lm.n_q, frames), jnp.int32),
        ids=rows_of((batch, compiled_programs.TEXT_TOKENS), jnp.int32),
        mask=rows_of((batch, compiled_programs.TEXT_TOKENS), jnp.bool_),
    )
    return lm_training.make_step(model, config, layout).lower(state, examples)


@dataclasses.dataclass(frozen=True)
class Loop:
    """The compiled form of a program's largest loop, or of its entry if it has no loop."""

    cycles: int  # its own estimate, of all kernels together, for one turn
    kernels: int
    moved: dict[str, int]  # counts of large results that are only copies or conversions
    entry_moved: dict[str, int]  # the same before and after the loop


def inspect(hlo: str) -> Loop:
    """Reads the text of a compiled program."""
    entry, loops = compiled_programs.computations(hlo)
    loop = max(loops or [entry], key=_cycles)
    kernels = sum(bool(_CYCLES.search(line)) for line in loop.splitlines())
    moved = compiled_programs.moved
    return Loop(_cycles(loop), kernels, moved(loop), {} if loop is entry else moved(entry))


def _cycles(body: str) -> int:
    return sum(map(int, _CYCLES.findall(body)))


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--program", default="decode", choices=["decode", "codec", "train"])
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--batch", type=int, default=1, help="clips at a time, of all devices")
    parser.add_argument("--cache", type=int, default=528, help="slots of the cache")
    parser.add_argument("--frames", type=int, default=500, help="of the codec, or of training")
    parser.add_argument("--accumulate", type=int, default=1, help="of training")
    parser.add_argument(
        "--topology",
        default="v5e:2x2",
        help="slice, such as v5e:2x2, v6e:2x2, v5e:8x8; what is no training has one device of it",
    )
    parser.add_argument(
        "--heads-apart", action="store_true", help="a cache with a block per head, as elsewhere"
    )
    args = parser.parse_args(argv)
    name = f"facebook/musicgen-{args.size}"
    model = OFFICIAL_MODELS[name]
    if args.quick:
        model = dataclasses.replace(model, lm=dataclasses.replace(model.lm, num_layers=2))
        args.cache = 256
    config = model.lm
    began = time.perf_counter()
    if args.program == "decode":
        lowered = compiled_programs.decode_loop(
            config,
            devices(args.topology)[0],
            dtype=args.dtype,
            batch=args.batch,
            cache=args.cache,
            tuning=dataclasses.replace(TPU, heads_per_block=1) if args.heads_apart else TPU,
        )
    elif args.program == "codec":
        lowered = compiled_programs.codec_decode(
            model.encodec, devices(args.topology)[0], batch=args.batch, frames=args.frames
        )
    else:
        lowered = train_step(
            model, args.topology, batch=args.batch, frames=args.frames, accumulate=args.accumulate
        )
    traced = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - traced
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes
    extra = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    loop = inspect(compiled.as_text())
    print(f"traced in {traced - began:.1f} s, compiled in {seconds:.1f} s for {args.topology}")
    print(f"{held / 1e9:.3f} GB of arguments on a device, {extra / 1e9:.3f} GB besides")
    print(f"{loop.cycles / 1e6:.3f} million cycles a turn in {loop.kernels} kernels (estimated)")
    for where, moved in (("in the loop", loop.moved), ("around it", loop.entry_moved)):
        for what, count in moved.items():
            print(f"{where}: {count} x {what}")
    return measuring.record(
        "tpu_compile",
        args,
        **{k: v for k, v in vars(args).items() if k not in ("quick", "results", "rounds")},
        libtpu=importlib.metadata.version("libtpu"),
        compile_seconds=round(seconds, 1),
        argument_bytes=held,
        extra_bytes=extra,
        **dataclasses.asdict(loop),
    )


if __name__ == "__main__":
    main()
