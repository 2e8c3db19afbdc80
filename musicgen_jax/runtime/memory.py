"""Memory: the size of arrays, and what the C library keeps of memory that was freed."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as <malloc.h> numbers them
_returning = False


def nbytes(tree: Any) -> int:
    """Bytes of a tree of arrays, or of shapes."""
    import jax  # here, so that the command line can call `return_freed_memory` at once

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def return_freed_memory() -> None:
    """Makes this process return freed memory to the system, from now on.

    glibc keeps freed memory for every thread that asked for it. Orbax reads in many threads and XLA
    compiles in many: after reading musicgen-small glibc held as much as the weights themselves.

    Settings of malloc hold for the whole process, so only the command line calls this, or a program
    that wants the same: `from musicgen_jax.runtime import memory; memory.return_freed_memory()`.
    Without it `give_back` and `mapped` do nothing. With another C library they never do.
    """
    global _returning
    _returning = sys.platform == "linux"


def give_back() -> None:
    """Returns freed memory to the system now; see `return_freed_memory`."""
    if _returning:
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Within this context malloc serves large arrays by `mmap`; see `return_freed_memory`.

    Memory of such an array returns to the system as soon as the array is freed. Otherwise it stays
    in the arena of the thread that asked for it, where `give_back` cannot release it.
    """
    _set_malloc(_MMAP_THRESHOLD, 1 << 18)
    try:
        yield
    finally:
        # The values that glibc itself arrives at once a program has freed a large array.
        _set_malloc(_MMAP_THRESHOLD, 1 << 25)
        _set_malloc(_TRIM_THRESHOLD, 1 << 26)


def _set_malloc(option: int, value: int) -> None:
    if _returning:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(option, value)
