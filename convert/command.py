"""The command line of the converter, shared by `musicgen-jax convert` and `-m`."""

import argparse

from musicgen_jax import console
from musicgen_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the converter's arguments to a parser."""
    parser.add_argument(
        "source",
        help="a folder or file from audiocraft or transformers, or a Hugging Face Hub repository",
    )
    parser.add_argument("out", help="the folder to write")
    parser.add_argument(
        "--t5",
        metavar="SOURCE",
        help="T5 and its tokenizer (default: the source, its neighbour t5-base, or the Hub)",
    )
    parser.add_argument(
        "--encodec",
        metavar="SOURCE",
        help="the codec (default: the source, a neighbouring folder, or the Hub)",
    )
    parser.add_argument(
        "--mert",
        metavar="SOURCE",
        help="MERT, for a style model (default: a neighbouring folder or the Hub)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="RoBERTa's vocab.json and merges.txt, for CLAP (default: near the source or the Hub)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--name", help="name of the model (default: that of the source)")
    parser.add_argument(
        "--storage",
        choices=("plain", "int8"),
        default="plain",
        help="int8 takes a quarter of the disk space of float32",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="afterwards compare every stage with transformers (needs torch and transformers)",
    )
    console.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Converts a model, and verifies it if requested.

    Raises:
      UserError: the input cannot be converted, or the options do not fit each other.
    """
    from musicgen_jax.convert.pipeline import convert

    out = console.Console.of(args)

    places = {
        "t5_from": args.t5,
        "encodec_from": args.encodec,
        "mert_from": args.mert,
        "revision": args.revision,
    }
    if args.verify:
        from musicgen_jax.convert import verify

        verify.require_packages()  # check before the long conversion
        if args.storage != "plain":
            raise UserError("--verify compares exact weights: use it with --storage plain")
        verify.require_reference(args.source, **places)
    with out.counter("converting", "B") as progress:
        convert(
            args.source,
            args.out,
            **places,
            tokenizer_from=args.tokenizer,
            name=args.name,
            storage=args.storage,
            overwrite=args.overwrite,
            log=out.say,
            progress=progress,
        )
    stages = []
    if args.verify:
        out.say(f"wrote {args.out}")
        stages = verify.verify(args.source, args.out, **places, log=out.say)
    errors = {"errors": {stage.name: stage.error for stage in stages}} if args.verify else {}
    facts = {"folder": args.out, "source": args.source, **errors}
    out.made(f"verified {args.out}" if args.verify else f"wrote {args.out}", **facts)
