"""`musicgen-jax export`: a model that runs without this package."""

import argparse

from musicgen_jax import console
from musicgen_jax.generation.settings import DEFAULT_SAMPLING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to a parser."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="nano, a converted model's folder, or an official name")
    add("output", metavar="OUT_DIR", help="the folder to make")
    add("--batch", type=int, default=1, metavar="B", help="clips made at once")
    add(
        "--platforms",
        default="cpu,cuda,tpu",
        metavar="LIST",
        help="target platforms; none of them needs to be present on this machine",
    )
    add(
        "--duration",
        type=float,
        metavar="SECONDS",
        help="length of the longest clip (default: the model's window)",
    )
    add("--tokens", type=int, default=64, metavar="L", help="tokens of the longest prompt")
    add(
        "--top-k",
        type=int,
        default=DEFAULT_SAMPLING.top_k,
        metavar="K",
        help="sample among the K most likely tokens; 0: all",
    )
    add("--nucleus", action="store_true", help="make top_p an argument of the exported program")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the language model; bfloat16 is for accelerators",
    )
    console.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the programs and weights."""
    from musicgen_jax.export.program import export_model
    from musicgen_jax.model import MusicGen
    from musicgen_jax.storage import hub

    out = console.Console.of(args)
    folder = export_model(
        MusicGen.from_pretrained(args.model, dtype=args.dtype),
        args.output,
        batch=args.batch,
        duration=args.duration,
        tokens=args.tokens,
        top_k=args.top_k,
        nucleus=args.nucleus,
        platforms=args.platforms.split(","),
        source=hub.find_model(args.model),
        bar=out.bar,
    )
    size = sum(file.stat().st_size for file in folder.iterdir())
    out.made(
        f"wrote {folder} ({size / 1e6:.0f} MB); {folder / 'run.py'} shows how to run it",
        folder=str(folder),
        bytes=size,
    )
