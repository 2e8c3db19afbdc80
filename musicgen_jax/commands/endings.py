"""How a command ends: signals, errors and bugs of ours, each with one line and an exit code.

This module imports nothing heavy: it is at work while everything else is still being imported.
"""

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from musicgen_jax import __version__
from musicgen_jax.errors import UserError, one_line, reason

WRONG_INPUT = 2
FAULT = 1  # of ours
INTERRUPTED = 128 + signal.SIGINT  # what a shell reports for Ctrl-C
_AGAIN_SECONDS = 0.02
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def ended(run: Callable[[], int], *, debug: bool = False, last: bool = False) -> int:
    """Runs a command, says in one line on stderr why it failed, and returns its exit code.

    Args:
      run: the command.
      debug: whether a bug of ours shows its traceback; otherwise the traceback goes to a file.
      last: whether the process ends after this: a signal that comes even later ends it at once.

    Returns:
      what `run` returned; 2 for what the user can fix; 1 for a bug of ours; 130 after Ctrl-C;
      143 after SIGTERM.
    """
    with _signals(last) as signals:
        try:
            return run()
        except BaseException as error:
            if signals.received is not None:  # libraries wrap an interrupt in errors of their own
                return signals.said()
            if isinstance(error, SystemExit):  # of argparse, which has said why
                raise
            if isinstance(error, KeyboardInterrupt):
                _say("interrupted")
                return INTERRUPTED
            if debug:
                raise
            return _failed(error)


def leave(code: int) -> NoReturn:
    """Ends the process at once.

    After an interrupt the device may still be computing, and Python's own shutdown would crash
    then.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _failed(error: BaseException) -> int:
    if isinstance(error, UserError):
        _say(f"error: {error}")
    elif isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        _say("error: out of memory: make fewer or shorter clips at once, or use a smaller dtype")
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        _say(f"error: {where}{reason(error)}")
    else:
        what = f"{type(error).__name__}: {reason(error)}"
        _say(f"a bug in musicgen-jax itself, {what}: {_report(error)}")
        return FAULT
    return WRONG_INPUT


def _report(error: BaseException) -> str:
    """Writes what a developer needs to a file, and says where."""
    import traceback

    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="musicgen-jax-fault-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            python = sys.version.split()[0]
            file.write(f"musicgen-jax {__version__}, Python {python}, {sys.platform}\n")
            traceback.print_exception(error, file=file)
    except OSError:
        return "add --debug and report the traceback"
    return f"please report it with {file.name}"


def _say(line: str) -> None:
    # One piece of text: what another thread writes does not come between the line and its end.
    print(f"musicgen-jax: {one_line(line)}\n", end="", file=sys.stderr)


class _Signals:
    """Turns signals into `KeyboardInterrupt`, but never where Python would break or swallow it.

    An interrupted import leaves half a module, and extension modules crash; so the interrupt waits
    until no import is running. In a callback of the garbage collector Python prints the exception
    and goes on; so it is raised again. From the signal on, errors of other threads are not shown:
    they lose what they work on (such as the event loop that reads a model) while this one ends. An
    error that escapes in this thread ends the process as the signal does.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._said = False

    def said(self) -> int:
        """The exit code of the signal, which is named on stderr once."""
        assert self.received is not None
        if not self._said:
            self._said = True
            _say(_WORDS[self.received])
        return 128 + self.received

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._interrupt(frame)

    def on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._interrupt(frame)

    def _interrupt(self, frame: FrameType | None) -> None:
        if hasattr(signal, "setitimer") and _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            raise KeyboardInterrupt

    def until_received(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def called(*what: Any) -> None:
            if self.received is None:
                hook(*what)

        return called

    def at_the_end(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def called(*what: Any) -> None:
            if self.received is None:
                hook(*what)
            else:
                leave(self.said())

        return called

    def again_if_swallowed(self, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def called(unraisable: Any) -> None:
            if self.received is None:
                hook(unraisable)
            elif issubclass(unraisable.exc_type, KeyboardInterrupt) and hasattr(
                signal, "setitimer"
            ):
                signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)

        return called


_at_work: _Signals | None = None  # of the outermost command: one that it calls shares them


@contextlib.contextmanager
def _signals(last: bool) -> Iterator[_Signals]:
    global _at_work
    if threading.current_thread() is not threading.main_thread():
        yield _Signals()  # signals never come here
    elif _at_work is not None:
        yield _at_work
    else:
        _at_work = _Signals()
        try:
            with _installed(_at_work, last):
                yield _at_work
        finally:
            _at_work = None


@contextlib.contextmanager
def _installed(signals: _Signals, last: bool) -> Iterator[None]:
    handlers: dict[int, Any] = {signal.SIGINT: signals.on_signal, signal.SIGTERM: signals.on_signal}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = signals.on_alarm
    # A shell's background jobs ignore Ctrl-C, and so does what `nohup` starts.
    before = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    sys.excepthook = signals.at_the_end(hooks[0])
    threading.excepthook = signals.until_received(hooks[1])
    sys.unraisablehook = signals.again_if_swallowed(hooks[2])
    try:
        yield
    finally:
        if hasattr(signal, "setitimer") and before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if not (last and signals.received):
            sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        for number, handler in before.items():
            signal.signal(number, _leave if last else handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def debug_flag(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` is among the options, and the arguments without it."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    options = [argument for argument in argv[:end] if argument != "--debug"]
    return len(options) < end, [*options, *argv[end:]]
