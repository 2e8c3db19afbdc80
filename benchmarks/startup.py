"""How long until the first clip: imports, help, compilation, and the cache on disk.

Question: how long does a user wait in a fresh process, and how much of that is our code? Every
number is the median over rounds, each in a process of its own. "First clip" is the whole command
`generate`, from the shell to the file: with an empty cache, with the filled cache, and without a
cache.

    python benchmarks/startup.py --rounds 3
    python benchmarks/startup.py --model musicgen-small --duration 8

Appends one JSON line to benchmarks/results.jsonl.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
# Own time: the time of the statement itself, once the libraries that it needs are imported.
_OWN = (
    "import time; {libraries}; t = time.perf_counter(); {statement}; print(time.perf_counter()-t)"
)


def python(*arguments: str, cache: str = "off") -> tuple[float, str]:
    """Seconds that a process takes, and its output."""
    environment = os.environ | {
        "MUSICGEN_JAX_CACHE": cache,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if result.returncode:
        raise SystemExit(result.stderr)
    return seconds, result.stdout


def own_time(statement: str, libraries: str) -> float:
    return float(python("-c", _OWN.format(statement=statement, libraries=libraries))[1])


def measure(model: str, duration: float, folder: Path) -> dict[str, float]:
    """One round."""
    clip = ("-m", "musicgen_jax", "generate", "calm piano", "--model", model)
    clip += ("--duration", str(duration), "-o", str(folder / "out.wav"))
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    model_libraries = "import jax, numpy, flax.nnx; from orbax.checkpoint import v1"
    return {
        "python alone": python("-c", "pass")[0],
        "jax alone": python("-c", "import jax; jax.devices()")[0],
        "import musicgen_jax, own time": own_time("import musicgen_jax", "import sys"),
        "import MusicGen, own time": own_time("from musicgen_jax import MusicGen", model_libraries),
        "--help": python("-m", "musicgen_jax", "--help")[0],
        "first clip, cache off": python(*clip)[0],
        "first clip, cache empty": python(*clip, cache=str(cache))[0],
        "first clip, cache filled": python(*clip, cache=str(cache))[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="nano")
    parser.add_argument("--duration", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    args = parser.parse_args()

    sys.path[0] = str(HERE.parent)
    with tempfile.TemporaryDirectory() as folder:
        rounds = [measure(args.model, args.duration, Path(folder)) for _ in range(args.rounds)]
        size = sum(file.stat().st_size for file in (Path(folder) / "cache").rglob("*-cache"))
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    for name, seconds in medians.items():
        values = " ".join(f"{each[name]:.2f}" for each in rounds)
        print(f"{name}: {seconds:.3f} s ({values})")
    print(f"cache: {size / 1e6:.1f} MB")

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    record = {
        "benchmark": "startup",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax")},
        "model": args.model,
        "duration": args.duration,
        "seconds": {name: round(seconds, 4) for name, seconds in medians.items()},
        "rounds": args.rounds,
        "cache_mb": round(size / 1e6, 1),
    }
    with args.results.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
