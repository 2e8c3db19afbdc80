"""What a reader may do with a damaged file: succeed, or refuse it in one line, soon and small."""

import contextlib
import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from musicgen_jax.errors import UserError, one_line

SECONDS = 10.0  # of processor time; other programs may have the processor
WAITING = 6  # times as many seconds by the clock
MEGABYTES = 1024.0


class TookTooLong(BaseException):
    """Not an `Exception`: no reader may catch it."""


@contextlib.contextmanager
def within_limits() -> Iterator[None]:
    """Passes `UserError` on its way out; any other exception, much time or much memory is a fault.

    Raises:
      AssertionError: the message of a refusal is empty, or more memory was used.
      TookTooLong: the block took longer than `SECONDS`, or waited for long.
    """

    def late(*_):
        raise TookTooLong

    _restart_peak()
    before = _peak()
    timers = (
        (signal.ITIMER_PROF, signal.SIGPROF, SECONDS),
        (signal.ITIMER_REAL, signal.SIGALRM, SECONDS * WAITING),
    )
    handlers = [signal.signal(number, late) for _, number, _ in timers]
    for timer, _, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError as error:
        if not one_line(str(error)):
            raise AssertionError("a refusal without a word") from error
    finally:
        for (timer, number, _), handler in zip(timers, handlers, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
    grown = _peak() - before
    assert grown < MEGABYTES, f"{grown:.0f} MB more"


def _restart_peak() -> None:
    """The peak counts from now on. Only Linux can do that; elsewhere an earlier peak hides some."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / (1 << 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
