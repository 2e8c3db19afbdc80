"""What the compiler for TPUs makes of our programs; nothing here is run on one.

Question: do the programs fit, does the decode loop move or widen what it should only read, and how
many cycles does the compiler reckon with? `libtpu` compiles for a TPU that is not there, so this
needs no accelerator. The cycles are the compiler's own estimate of each kernel's time, copies that
it overlaps with others left out: good for comparing two ways of writing the same step, not for
promising speeds.

    pip install 'musicgen-jax[tpu]'
    export JAX_PLATFORMS=cpu
    python benchmarks/tpu_compile.py --size small --batch 64
    python benchmarks/tpu_compile.py --size small --batch 64 --heads-apart
    python benchmarks/tpu_compile.py --program codec --frames 500
    python benchmarks/tpu_compile.py --program train --size large --topology v5e:8x8 --batch 128
"""

import collections
import dataclasses
import importlib.metadata
import math
import os
import re
import time

# What libtpu would ask the machine's metadata server, were this a TPU.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several may compile at once

import jax
import jax.numpy as jnp
import measuring
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from musicgen_jax import generate, sharding
from musicgen_jax.conditioning.condition import Condition
from musicgen_jax.config import OFFICIAL_MODELS, EncodecConfig, LMConfig, MusicGenConfig
from musicgen_jax.encodec import Encodec
from musicgen_jax.lm import LM
from musicgen_jax.shapes import module_shapes
from musicgen_jax.training import lm as lm_training
from musicgen_jax.training.layout import Layout
from musicgen_jax.training.optimizer import OptimizerConfig

TEXT_TOKENS = 16
LARGE = 1 << 20  # bytes; what is smaller is not worth a look
_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%\S+ = (\w+)\[([\d,]*)\]\S* ([\w-]+)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def devices(topology: str) -> list:
    """The devices of a slice such as "v5e:2x2", as the compiler knows them."""
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def decode_loop(
    config: LMConfig, topology: str, *, dtype: str, batch: int, cache: int, groups: int | None
) -> jax.stages.Lowered:
    """The loop of `generate_codes` with guidance, for one device.

    Args:
      config: of the language model.
      topology: of the slice, whose first device is taken.
      dtype: of the weights; the computation is bfloat16 unless they are float32.
      batch: B.
      cache: S, slots.
      groups: that the cache is kept in; None as on a TPU.
    """
    compute = "float32" if dtype == "float32" else "bfloat16"
    types = {"dtype": compute, "param_dtype": dtype, "cache_dtype": compute}
    graphdef, params = nnx.split(
        module_shapes(LM, config, **types, cache_groups=groups or 1), nnx.Param
    )
    vectors = jax.ShapeDtypeStruct((2 * batch, TEXT_TOKENS, config.dim), compute)
    condition = Condition(vectors, jax.ShapeDtypeStruct(vectors.shape[:2], bool))
    steps = jax.ShapeDtypeStruct((batch, config.n_q, cache + 1), jnp.int32)

    def start(params, steps, keys, condition):
        return generate._start.__wrapped__(
            graphdef, params, steps, jnp.int32(0), keys, condition,
            prefill_length=0, cache_length=cache, copies=2,
        )  # fmt: skip

    def decode(params, state, cross_kv, condition, count, *numbers):
        return generate._decode.__wrapped__(
            graphdef, params, state, cross_kv, condition, count, *numbers, None,
            form=generate.Form(),
        )  # fmt: skip

    keys = jax.eval_shape(lambda: generate.example_keys(0, batch))
    state, cross_kv = jax.eval_shape(start, params, steps, keys, condition)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    here = SingleDeviceSharding(devices(topology)[0])
    jitted = jax.jit(decode, donate_argnums=1, in_shardings=here, out_shardings=here)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return jitted.lower(params, state, cross_kv, condition, count, number, number, number)


def codec_decode(
    config: EncodecConfig, topology: str, *, batch: int, frames: int
) -> jax.stages.Lowered:
    """EnCodec from codes to sound, for one device."""
    graphdef, params = nnx.split(module_shapes(Encodec, config), nnx.Param)
    codes = jax.ShapeDtypeStruct((batch, config.n_q, frames), jnp.int32)
    here = SingleDeviceSharding(devices(topology)[0])

    def decode(params, codes):
        return nnx.merge(graphdef, params).decode(codes)

    return jax.jit(decode, in_shardings=here, out_shardings=here).lower(params, codes)


def train_step(
    model: MusicGenConfig, topology: str, *, batch: int, frames: int, accumulate: int
) -> jax.stages.Lowered:
    """A training step with FSDP over a whole slice, bfloat16, rematerialised, as the presets."""
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

    arrays = (
        rows_of((batch, model.lm.n_q, frames), jnp.int32),
        rows_of((batch, TEXT_TOKENS), jnp.int32),
        rows_of((batch, TEXT_TOKENS), jnp.bool_),
    )
    return lm_training.make_step(model, config, layout).lower(state, *arrays)


@dataclasses.dataclass(frozen=True)
class Loop:
    """What the compiler made of the largest loop of a program, or of its entry without one."""

    cycles: int  # its own estimate, of all kernels together, for one turn
    kernels: int
    moved: dict[str, int]  # large results that are only copies or conversions -> how many
    entry_moved: dict[str, int]  # the same before and after the loop


def inspect(hlo: str) -> Loop:
    """Reads the text of a compiled program."""
    bodies = re.split(r"\n(?=%|ENTRY)", hlo)
    entry = next(body for body in bodies if body.startswith("ENTRY"))
    loops = set(re.findall(r"body=(%[\w.-]+)", hlo))
    candidates = [b for b in bodies if b.split(" ", 1)[0] in loops] or [entry]
    loop = max(candidates, key=_cycles)
    kernels = sum(bool(_CYCLES.search(line)) for line in loop.splitlines())
    return Loop(_cycles(loop), kernels, _moved(loop), {} if loop is entry else _moved(entry))


def _cycles(body: str) -> int:
    return sum(map(int, _CYCLES.findall(body)))


def _moved(body: str) -> dict[str, int]:
    found = collections.Counter()
    for line in body.splitlines():
        if match := _INSTRUCTION.match(line):
            dtype, sizes, kind = match.groups()
            size = math.prod(map(int, sizes.split(","))) if sizes else 1
            moves = kind in ("copy", "convert", "transpose", "slice")
            if moves and size * _BYTES.get(dtype, 4) >= LARGE:
                found[f"{kind} {dtype}[{sizes}]"] += 1
    return dict(found)


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--program", default="decode", choices=["decode", "codec", "train"])
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--batch", type=int, default=1, help="clips at a time, of all devices")
    parser.add_argument("--cache", type=int, default=512, help="slots of the cache")
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
        lowered = decode_loop(
            config,
            args.topology,
            dtype=args.dtype,
            batch=args.batch,
            cache=args.cache,
            groups=config.num_heads if args.heads_apart else None,
        )
    elif args.program == "codec":
        lowered = codec_decode(model.encodec, args.topology, batch=args.batch, frames=args.frames)
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
