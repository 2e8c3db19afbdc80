"""Standard streams that are missing or lose their reader: the work continues without its lines."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from musicgen_jax.errors import printable


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Within this context a line that nobody can read is dropped, and the work continues.

    That is the case in `musicgen-jax batch ... | head -1`, and in a service without a stderr.
    Names of files that are not text, and control characters in anything that came from outside,
    are printed with escapes.
    """
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            elif isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _Tolerant(stream))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


class _Tolerant:
    """A text stream that drops what is written once its reader is gone."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(printable(text))
            return len(text)
        except BrokenPipeError:
            self._drop_the_rest()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop_the_rest()

    def _drop_the_rest(self) -> None:
        # Also for Python's own flush at exit, which would complain.
        with contextlib.suppress(OSError, io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
