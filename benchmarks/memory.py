"""Peak memory of loading a model of official size and making a clip, in a process of its own.

Question: how much more than its weights and one cache does a model need? The script writes random
weights to a folder, as a conversion does, and two fresh processes load it and generate with
guidance. The first fills the cache of compiled programs, and the second is measured. The memory of
Python, JAX and our imports is measured before loading and subtracted.

    python benchmarks/memory.py --size small --dtype float32
    python benchmarks/memory.py --size small --dtype int8 --folder /tmp/random-small
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import measuring
import numpy as np

TEXT = "a calm waltz on the piano, with a slow and soft accompaniment of strings"


def write_model(path: Path, size: str, quick: bool) -> None:
    """A folder with random float32 weights, component by component."""
    from flax import nnx

    from musicgen_jax import testing
    from musicgen_jax.config import OFFICIAL_MODELS
    from musicgen_jax.nn.encodec import Encodec
    from musicgen_jax.nn.lm import LM
    from musicgen_jax.nn.shapes import module_shapes
    from musicgen_jax.nn.t5 import T5Encoder
    from musicgen_jax.storage import checkpoint

    config = testing.DEBUG if quick else OFFICIAL_MODELS[f"facebook/musicgen-{size}"]
    modules = {"t5": T5Encoder, "lm": LM, "encodec": Encodec}
    with checkpoint.writing_model(path) as writer:
        for name, module in modules.items():
            shapes = nnx.to_pure_dict(
                nnx.state(module_shapes(module, getattr(config, name)), nnx.Param)
            )
            writer.write_component(name, testing.random_params(shapes, std=0.02))
        tokenizer = Path(checkpoint.__file__).parent / "nano/model" / checkpoint.TOKENIZER
        writer.finish(config, tokenizer=tokenizer, license="random numbers", source={})


def child(folder: str, dtype: str, duration: float) -> None:
    """Loads, generates, and prints the memory as JSON."""
    import jax.numpy as jnp
    from flax import nnx

    from musicgen_jax import MusicGen
    from musicgen_jax.generation.plan import cache_lengths

    jnp.zeros(8).block_until_ready()
    before = measuring.peak_memory()
    model = MusicGen.from_pretrained(folder, dtype=dtype)
    jax.block_until_ready(jax.tree.leaves(nnx.state((model.t5, model.lm, model.encodec))))
    loaded = measuring.peak_memory()
    model.generate([TEXT], duration=duration)
    parts = nnx.state((model.t5, model.lm, model.encodec), nnx.Param)
    lm, steps = model.lm, int(duration * model.frame_rate) + max(model.config.lm.delays)
    cache = jax.eval_shape(lambda: lm.init_cache(2, cache_lengths(steps, lm.tuning)[-1]))
    size = lambda tree: sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    figures = {
        "before": before,
        "loaded": loaded,
        "peak": measuring.peak_memory(),
        "weights": int(size(parts)),
        "cache": int(size(cache)),
    }
    print(json.dumps(figures))


def measure(folder: Path, dtype: str, duration: float) -> dict:
    """The figures of the second of two processes."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "MUSICGEN_JAX_CACHE": cache,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, __file__, "--child", str(folder)]
        command += ["--dtype", dtype, "--duration", str(duration)]
        for _ in range(2):
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            if run.returncode:
                raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> dict | None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of music")
    parser.add_argument("--folder", type=Path, help="keeps the random model for the next call")
    parser.add_argument("--child", help="used by the script itself")
    args = parser.parse_args(argv)
    if args.child:
        return child(args.child, args.dtype, args.duration)
    if args.quick:
        args.duration = 0.5
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "model"
        if not folder.exists():
            write_model(folder, args.size, args.quick)
        figures = measure(folder, args.dtype, args.duration)
    needed = figures["weights"] + figures["cache"]
    peak, loaded = (figures[name] - figures["before"] for name in ("peak", "loaded"))
    print(f"weights {figures['weights'] / 1e9:.2f} GB, cache {figures['cache'] / 1e9:.2f} GB")
    print(f"at most {peak / 1e9:.2f} GB: {peak / needed - 1:+.0%}; {loaded / 1e9:.2f} GB to load")
    print(f"Python, JAX and our imports: {figures['before'] / 1e9:.2f} GB")
    return measuring.record(
        "memory", args, size=args.size, dtype=args.dtype, duration=args.duration, **figures
    )


if __name__ == "__main__":
    main()
