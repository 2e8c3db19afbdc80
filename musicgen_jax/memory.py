"""Memory that is no longer needed."""

import contextlib
import ctypes
import sys


def give_back() -> None:
    """Has freed memory returned to the system; without glibc nothing happens.

    Orbax reads in many threads and XLA compiles in many, for each of which glibc keeps what it has
    freed: after reading musicgen-small it held as much as the weights themselves.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
