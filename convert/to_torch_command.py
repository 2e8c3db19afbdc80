"""`musicgen-jax export-torch`: writes models trained here in the official PyTorch formats."""

import argparse

from musicgen_jax import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to a parser."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="nano, a model's folder, or an official name")
    add("out", metavar="OUT", help="the folder to write")
    add(
        "--format",
        choices=("audiocraft", "transformers"),
        default="audiocraft",
        help="the library that will load it (default: audiocraft, the one with style models)",
    )
    add("--overwrite", action="store_true", help="replace an existing export")
    console.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the files.

    Raises:
      UserError: the model cannot be exported, or the folder cannot be written.
    """
    from musicgen_jax.convert.to_torch import export_torch

    out = console.Console.of(args)
    export_torch(args.model, args.out, format=args.format, overwrite=args.overwrite, log=out.say)
    out.made(f"wrote {args.out}", folder=args.out, model=args.model, format=args.format)
