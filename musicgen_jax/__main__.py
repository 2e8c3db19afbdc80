"""`python -m musicgen_jax` and the command `musicgen-jax`: signals count before the imports do."""

import sys

from musicgen_jax.commands import endings


def main() -> int:
    """Runs the process's own arguments as `commands.cli.main` does, and ends the process after."""

    def run() -> int:
        from musicgen_jax.commands import cli

        return cli.main()

    code = endings.ended(run, debug="--debug" in sys.argv, last=True)
    if code > 128:  # a signal
        endings.leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
