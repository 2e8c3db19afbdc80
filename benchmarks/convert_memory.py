"""Peak memory and time of a conversion at an official model's true size.

Question: does the converter hold one component at a time, and never the model twice? The script
writes made-up weights of the true shapes, as audiocraft's pair of files (the language model in
float16) and a t5-base folder, and uses no torch. The bound is the largest component on disk plus
1.5 GB.

    python benchmarks/convert_memory.py --model facebook/musicgen-large --folder /scratch

It needs about twice the model's size on disk (17 GB for musicgen-large), and removes all of it.
Appends one JSON line to benchmarks/results.jsonl. Exits with 1 above the bound.
"""

import argparse
import datetime
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from musicgen_jax.config import OFFICIAL_MODELS, MusicGenConfig
from musicgen_jax.convert import encodec, lm, t5
from musicgen_jax.convert.inverse import invert_table
from musicgen_jax.convert.pipeline import abstract_params
from musicgen_jax.convert.rules import Table
from musicgen_jax.convert.tensors import LazyTensor
from musicgen_jax.convert.torch_writer import write_torch

ALLOWANCE = 1.5e9  # bytes beyond the largest component


def official_shapes(component: str, config: Any, table: Table) -> dict[str, tuple[int, ...]]:
    """An official file's keys and their shapes: what the table makes of a model of zeros."""
    zeros = jax.tree.map(
        lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_params(component, config)
    )
    return {key: tensor.shape for key, tensor in invert_table(table, zeros, component).items()}


def write_official(folder: Path, config: MusicGenConfig) -> None:
    """The files of a model, with made-up numbers."""
    noise = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float32)

    def lazy(shape: tuple[int, ...], dtype: np.dtype) -> LazyTensor:
        return LazyTensor(shape, dtype, lambda: np.resize(noise.astype(dtype), shape))

    tables = {
        "lm": lm.audiocraft_table(config.lm),
        "encodec": encodec.table(config.encodec, encodec.SPELLINGS["audiocraft"]),
        "t5": t5.TABLE,
    }
    shapes = {
        name: official_shapes(name, getattr(config, name), table) for name, table in tables.items()
    }
    half, single = np.dtype(np.float16), np.dtype(np.float32)
    state = {key: lazy(shape, half) for key, shape in shapes["lm"].items()}
    settings = f"transformer_lm:\n  num_heads: {config.lm.num_heads}\n"
    write_torch(folder / "state_dict.bin", {"best_state": state, "xp.cfg": settings})
    state = {key: lazy(shape, single) for key, shape in shapes["encodec"].items()}
    write_torch(folder / "compression_state_dict.bin", {"best_state": state, "xp.cfg": ""})
    (folder / "t5-base").mkdir()
    state = {key: lazy(shape, single).read() for key, shape in shapes["t5"].items()}
    safetensors.numpy.save_file(state, folder / "t5-base" / "model.safetensors")
    (folder / "t5-base" / "spiece.model").write_bytes(b"made up")


def measure(source: Path, out: Path) -> tuple[float, float]:
    """Peak resident bytes and seconds of a conversion in its own process."""
    code = (
        "import resource, sys\n"
        "from musicgen_jax.convert import convert\n"
        "convert(sys.argv[1], sys.argv[2], log=print)\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, source, out], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    print(done.stdout, end="")
    match = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    assert match is not None
    unit = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss
    return int(match[1]) * unit, seconds


def main() -> int:
    """Makes the files, converts them, and compares the peak with the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="facebook/musicgen-small", choices=OFFICIAL_MODELS)
    parser.add_argument("--folder", type=Path, help="where there is room; by default the temporary")
    args = parser.parse_args()
    config = OFFICIAL_MODELS[args.model]
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, out = Path(name) / "source", Path(name) / "out"
        source.mkdir()
        write_official(source, config)
        peak, seconds = measure(source, out)
        components = json.loads((out / "config.json").read_text())["components"]
        largest = max(component["bytes"] for component in components.values())
        shutil.rmtree(out)
    bound = largest + ALLOWANCE
    line = {
        "benchmark": "convert_memory",
        "date": datetime.date.today().isoformat(),
        "model": args.model,
        "peak_gb": round(peak / 1e9, 3),
        "largest_component_gb": round(largest / 1e9, 3),
        "bound_gb": round(bound / 1e9, 3),
        "seconds": round(seconds, 1),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    print(json.dumps(line))
    with (Path(__file__).parent / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return int(peak > bound)


if __name__ == "__main__":
    sys.exit(main())
