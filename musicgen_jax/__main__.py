"""`python -m musicgen_jax` is `musicgen-jax`."""

import sys

from musicgen_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
