"""`python -m musicgen_jax` and the command `musicgen-jax`: signals count before the imports do."""

import signal
import sys

# Until our own handlers are there, Ctrl-C ends the process as it ends any program, without a word.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

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
