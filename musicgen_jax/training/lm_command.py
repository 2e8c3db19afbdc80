"""`musicgen-jax train lm`: a language model from codes."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to a parser."""
    add = parser.add_argument
    add(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="a TOML file of settings, or a preset: debug, nano, small, medium, large; with "
        "--resume it may be left out",
    )
    add("--run", dest="folder", required=True, metavar="DIR", help="folder of the run")
    add("--data", metavar="CODES", help="folder of codes, from `train encode`")
    add("--resume", action="store_true", help="go on from the last checkpoint of DIR")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    raise NotImplementedError
