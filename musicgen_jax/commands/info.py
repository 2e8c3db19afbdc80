"""`musicgen-jax info`: what a model or a file is."""

import argparse
import json
from typing import Any

from musicgen_jax.errors import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument(
        "what",
        metavar="MODEL|FILE",
        help="nano, a model's folder, an official name, or a file: a clip, codes, an adapter, "
        "statistics",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Prints what is known."""
    from musicgen_jax.commands import info_of

    found = info_of.describe(args.what)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    _print(found, "")


def _print(found: dict[str, Any], indent: str) -> None:
    plain = [one_line(name) for name, value in found.items() if not isinstance(value, dict)]
    width = max(map(len, plain), default=0)
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{indent}{one_line(name)}:")
            _print(value, indent + "  ")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            print(f"{indent}{one_line(name):<{width}}  {one_line(text)}")
