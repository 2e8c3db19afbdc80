"""The one exception for faults that the user can correct, and checks that many rooms share."""

import contextlib
import math
import numbers
import os
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
      path: the file or folder that it does it to.

    Raises:
      UserError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {verb} {path}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why something failed, as the end of a sentence: one line of at most 200 characters.

    Libraries wrap the system's errors in long texts of their own; a full disk is recognised in
    those, too.
    """
    if "No space left on device" in f"{error} {error.__cause__}":
        return "No space left on device"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_LONGEST]


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
    """`text` with escapes for what UTF-8 cannot express, such as bytes in the name of a file."""
    return text.encode("utf-8", "backslashreplace").decode()
