"""Memory: what arrays take, and what is no longer needed."""

import contextlib
import ctypes
import sys
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
