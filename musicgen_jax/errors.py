"""The one exception for faults that the user can correct, and checks that many rooms share."""

import contextlib
import errno
import math
import numbers
import os
import re
from collections.abc import Iterator
from typing import Any

_LONGEST = 200  # characters of a reason


class UserError(ValueError):
    """A fault that the caller can correct: the message names it and says what to do.

    The command line prints the message as one line and exits with code 2.
    """


@contextlib.contextmanager
def user_error(verb: str, path: str | os.PathLike) -> Iterator[None]:
    """Turns an `OSError` in its block into one line, such as "cannot write a.wav: Is a directory".

    Args:
      verb: what the block does: "read", "write", "delete".
      path: the file or folder that the block works on.

    Raises:
      UserError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {verb} {path}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why something failed, as the end of a sentence: one line of at most 200 characters.

    Libraries wrap the system's errors in long texts of their own; a full disk is recognised there
    too.
    """
    if "No space left on device" in f"{error} {error.__cause__}":
        return "No space left on device"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_LONGEST]


def machine_fault(error: BaseException) -> str | None:
    """Why the machine is at fault and not a file (no permission, no memory, a bad disk), or None.

    A file that cannot be read at this moment is not damaged. Libraries hide the system's error in a
    chain of their own, or in the text of their message.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, MemoryError):
            return "out of memory"
        for number in _MACHINE:
            if getattr(link, "errno", None) == number or os.strerror(number) in str(link):
                return os.strerror(number)
    return None


_MACHINE = (
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.ESTALE,
    errno.ETIMEDOUT,
)


def is_int(value: Any) -> bool:
    """Whether `value` is an integer, of Python or NumPy, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite integer or float, of Python or NumPy, and not a bool."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def printable(text: str) -> str:
    """`text` with escapes for what must not reach a terminal or cannot be written as UTF-8.

    These are control characters except tabs and line ends, marks that reverse the direction of
    writing, and bytes in the name of a file that are not text.
    """
    text = _UNPRINTABLE.sub(lambda match: _escape(match[0]), text)
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """`text` on one line, see `printable`."""
    return printable(" ".join(text.split()))


_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
