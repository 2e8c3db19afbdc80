"""Memory: what arrays take, and what is no longer needed."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import jax


def nbytes(tree: Any) -> int:
    """Bytes of a tree of arrays, or of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def give_back() -> None:
    """Has freed memory returned to the system; without glibc nothing happens.

    Orbax reads in many threads and XLA compiles in many, for each of which glibc keeps what it has
    freed: after reading musicgen-small it held as much as the weights themselves.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Meanwhile each large array has memory of its own, which goes back when the array is freed.

    Among others' it stays with the thread that asked for it, and `give_back` cannot reach the end
    of what a thread other than the first has. Without glibc nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError):
        _set_malloc(_MMAP_THRESHOLD, 1 << 18)
    try:
        yield
    finally:
        # What glibc itself ends with, once a program has freed something large.
        with contextlib.suppress(AttributeError, OSError):
            _set_malloc(_MMAP_THRESHOLD, 1 << 25)
            _set_malloc(_TRIM_THRESHOLD, 1 << 26)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as <malloc.h> numbers them


def _set_malloc(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(option, value)
