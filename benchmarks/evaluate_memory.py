"""Peak memory of `evaluate` for sets of clips that grow, each in a process of its own.

Question: does a set of 5,000 clips need more memory than one of 50? Every process runs the whole
command, with reports, on as many clips of noise, 1 s each, on both sides. The embedding is the
encoder of a random codec with few weights, so that the sets and not the network fill the memory.

    python benchmarks/evaluate_memory.py --clips 50 500 5000
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measuring
import numpy as np

RATE = 8000


def write_clips(folder: Path, count: int, seed: int) -> None:
    """Files of noise, all different, without the care that `audio.write` takes of each."""
    import soundfile

    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        soundfile.write(folder / f"{i:05}.wav", rng.normal(0, 0.1, RATE), RATE)


def child(folder: str, metrics: str) -> None:
    """Runs the command on a folder, and prints the memory as JSON."""
    from musicgen_jax.commands import cli

    place, printed = Path(folder), io.StringIO()
    words = ["--audio", place / "made", "--reference", place / "real", "--out", place / "report"]
    words += ["--embedding", "encodec", "--codec", place / "model", "--metrics", metrics, "--json"]
    with contextlib.redirect_stdout(printed):
        code = cli.main(["evaluate", *map(str, words)])
    fad = json.loads(printed.getvalue())["metrics"]["fad"] if not code else {}
    result = {"code": code, "clips": fad.get("clips"), "rows": fad.get("rows")}
    print(json.dumps(result | {"peak_bytes": measuring.peak_memory()}))


def run(count: int, metrics: str) -> dict:
    """What a process of its own says about a set."""
    from musicgen_jax import testing

    with tempfile.TemporaryDirectory() as folder:
        for seed, side in enumerate(("made", "real")):
            write_clips(Path(folder, side), count, seed)
        testing.save_random_model(Path(folder, "model"))
        start = time.monotonic()
        words = [sys.executable, __file__, "--child", folder, "--metrics", metrics]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout) | {"seconds": round(time.monotonic() - start, 1)}


def main(argv: list[str] | None = None) -> dict | None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[50, 500, 5000], help="in a set")
    parser.add_argument("--metrics", default="fad,kad", help="of evaluate")
    parser.add_argument("--child", help="a folder that this script made")
    args = parser.parse_args(argv)
    if args.child:
        child(args.child, args.metrics)
        return None
    if args.quick:
        args.clips = [2, 4]
    sets = []
    for count in args.clips:
        sets.append(run(count, args.metrics))
        found = sets[-1]
        print(
            f"{found['clips']} clips, {found['rows']} rows: {found['peak_bytes'] / 1e6:.0f} MB, "
            f"{found['seconds']:.0f} s",
            flush=True,
        )
    return measuring.record("evaluate_memory", args, metrics=args.metrics, sets=sets)


if __name__ == "__main__":
    main()
