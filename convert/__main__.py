"""`python -m musicgen_jax.convert SOURCE OUT`, the same as `musicgen-jax convert`."""

import argparse
import sys

from musicgen_jax.convert.command import add_arguments, run
from musicgen_jax.errors import UserError


def main() -> int:
    """Runs the converter and returns the exit code; 2 means that the input is invalid."""
    parser = argparse.ArgumentParser(prog="python -m musicgen_jax.convert", description=__doc__)
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
