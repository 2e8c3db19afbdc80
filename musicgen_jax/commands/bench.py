"""`musicgen-jax bench`: how fast this device is, with random weights and without a download."""

import argparse
import json

from musicgen_jax.config import DTYPES, OFFICIAL_MODELS
from musicgen_jax.console import Console
from musicgen_jax.errors import UserError

_SHORT = [name.removeprefix("facebook/musicgen-") for name in OFFICIAL_MODELS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    add("--model", default="small", choices=[*_SHORT, "nano"], help="model whose shape to measure")
    add("--dtype", choices=DTYPES, help="of the language model (default: float32 on a CPU, "
        "bfloat16 elsewhere)")  # fmt: skip
    add("--batch", type=int, default=1, metavar="B", help="clips made at once")
    add(
        "--steps",
        type=int,
        default=100,
        metavar="N",
        help="steps of the language model in each run",
    )
    add(
        "--limit",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="start no new measurement after this time, and name the ones left out",
    )
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Measures, and prints a line for each figure as it comes."""
    if not 1 <= args.batch <= 1024:
        raise UserError(f"--batch must be from 1 to 1024, got {args.batch}")
    if not 8 <= args.steps <= 1500:
        raise UserError(f"--steps must be from 8 to 1500, got {args.steps}")
    from musicgen_jax.commands import bench_measures
    from musicgen_jax.runtime import compile_cache

    compile_cache.enable()
    figures = {}
    out = Console(json=args.json)
    measures = bench_measures.measure(
        args.model, args.dtype, batch=args.batch, steps=args.steps, limit=args.limit
    )
    shown = out.bar(measures, total=bench_measures.COUNT, desc="measuring", unit="figure")
    for text, found in shown:
        figures |= found
        out.say(text)
    if args.json:
        print(json.dumps(figures, indent=2))
