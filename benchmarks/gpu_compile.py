"""How XLA compiles our programs for NVIDIA GPUs; nothing here runs on a GPU.

Question: how many launches does a step of the decode loop need, and does it move or widen arrays
that it should only read? At batch 1 a GPU waits for its host more than for its memory, so XLA
records as much as possible into a command buffer (a CUDA graph) and launches it as one. XLA's CUDA
plugin compiles from a description of a GPU, without the GPU and without CUDA's libraries. It then
cannot time kernels, so its choice may differ from the one on a machine with the GPU.

    pip install 'musicgen-jax[gpu-compiler]'
    export JAX_PLATFORMS=cpu
    python benchmarks/gpu_compile.py --size small
    python benchmarks/gpu_compile.py --size large --dtype int8 --batch 64
    python benchmarks/gpu_compile.py --program codec
"""

import dataclasses
import importlib.metadata
import itertools
import re
import tempfile
import time
from pathlib import Path

import compiled_programs
import jax
import measuring
from jax.experimental import topologies

from musicgen_jax.config import OFFICIAL_MODELS
from musicgen_jax.runtime.tuning import GPU

# As XLA describes an H100 SXM to itself.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_THUNK = re.compile(r"^( *)(?:\d+: (k\w+)|(body):)")

# Lines that only contain the lines that follow them.
_HOLDERS = ("body", "kConditional", "kDynamicSliceFusion", "kSequential")


def device() -> jax.Device:
    """A GPU, as described to the compiler."""
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=_H100
    )
    return described.devices[0]


@dataclasses.dataclass(frozen=True)
class Loop:
    """The work of the host for one turn of the largest loop of a program.

    A program without a loop counts as one turn.
    """

    kernels: int  # and copies, that run on the GPU
    command_buffers: int
    launches: int  # by the host: command buffers, kernels outside of them, copies
    inner_loops: int  # loops that the host runs turn by turn


def inspect(thunks: str) -> Loop:
    """Reads XLA's list of host operations, one of its `*.thunk_sequence*.txt` files."""
    lines = [
        (len(match[1]), match[2] or match[3])
        for line in thunks.splitlines()
        if (match := _THUNK.match(line))
    ]
    bodies = [
        list(itertools.takewhile(lambda line, depth=depth: line[0] > depth, lines[at + 1 :]))
        for at, (depth, kind) in enumerate(lines)
        if kind == "body"
    ]
    return max(map(_count, bodies or [lines]), key=lambda loop: loop.kernels)


def _count(lines: list[tuple[int, str]]) -> Loop:
    kernels = launches = buffers = loops = 0
    recorded = None  # depth of the command buffer that a line is in
    for depth, kind in lines:
        if recorded is not None and depth <= recorded:
            recorded = None
        if kind == "kCommandBuffer":
            recorded = depth
            buffers += 1
            launches += 1
        elif kind == "kWhile":
            loops += 1
        elif kind not in _HOLDERS:
            kernels += 1
            launches += recorded is None
    return Loop(kernels, buffers, launches, loops)


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--program", default="decode", choices=["decode", "codec"])
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cache", type=int, default=528, help="slots of the cache")
    parser.add_argument("--frames", type=int, default=500, help="of the codec")
    args = parser.parse_args(argv)
    model = OFFICIAL_MODELS[f"facebook/musicgen-{args.size}"]
    config = model.lm
    if args.quick:
        config, args.cache = dataclasses.replace(config, num_layers=2), 256
    if args.program == "decode":
        lowered = compiled_programs.decode_loop(
            config,
            device(),
            dtype=args.dtype,
            batch=args.batch,
            cache=args.cache,
            tuning=GPU,
        )
    else:
        lowered = compiled_programs.codec_decode(
            model.encodec, device(), batch=args.batch, frames=args.frames
        )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        seconds = time.perf_counter() - began
        # The list after XLA's last passes comes last. XLA omits it if they change nothing.
        loop = inspect(max(Path(folder).glob("*.jit_decode.thunk_sequence*.txt")).read_text())
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes
    extra = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    entry, loops = compiled_programs.computations(compiled.as_text())
    moved = compiled_programs.moved("\n".join(loops))
    entry_moved = compiled_programs.moved(entry)
    print(f"compiled in {seconds:.1f} s for an H100 that is not there")
    print(f"{held / 1e9:.3f} GB of arguments, {extra / 1e9:.6f} GB besides")
    print(
        f"a turn: {loop.kernels} kernels and copies in {loop.launches} launches, "
        f"{loop.command_buffers} of them command buffers; {loop.inner_loops} loops inside"
    )
    for where, found in (("in loops", moved), ("around them", entry_moved)):
        for what, count in found.items():
            print(f"{where}: {count} x {what}")
    return measuring.record(
        "gpu_compile",
        args,
        **{k: v for k, v in vars(args).items() if k not in ("quick", "results", "rounds")},
        plugin=importlib.metadata.version("jax-cuda12-plugin"),
        compile_seconds=round(seconds, 1),
        argument_bytes=held,
        extra_bytes=extra,
        moved=moved,
        entry_moved=entry_moved,
        **dataclasses.asdict(loop),
    )


if __name__ == "__main__":
    main()
