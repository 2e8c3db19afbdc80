"""`python -m musicgen_jax` and the command `musicgen-jax`: signals count before the imports do."""

# The built-in part of `signal`, which is there at once. `signal` itself is a file of Python, and
# Ctrl-C in the middle of it would show a traceback.
import _signal  # pyright: ignore[reportMissingImports]
import sys

# Until our own handlers are installed, Ctrl-C ends the process silently, as it ends any program.
if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

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
