"""Memory: how much there is, the size of arrays, and freed memory that the C library keeps."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # from <malloc.h>
_returning = False


def total() -> int | None:
    """Bytes of main memory that this process may use; None if the system does not say.

    In a container it is the container's limit, if that is less than the machine has.
    """
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, new and old
        with contextlib.suppress(OSError, ValueError):
            limits.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    return min(limits, default=None)


def peak() -> int | None:
    """The most bytes of main memory that this process has used; None on Windows."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        # getrusage includes the memory of the parent process
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    try:
        import resource
    except ImportError:
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def nbytes(tree: Any) -> int:
    """The size in bytes of a tree of arrays or shapes."""
    import jax  # imported here, so that the command line can call `return_freed_memory` first

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def available() -> int | None:
    """Bytes that this process can still take, as the system and its container say; else None."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) << 10)
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        found.append(max(0, limit - used))
    return min(found, default=None)


def return_freed_memory() -> None:
    """Makes this process return freed memory to the system, from now on.

    glibc keeps freed memory separately for every thread that allocated it. Orbax reads in many
    threads and XLA compiles in many threads. After reading musicgen-small, glibc held freed memory
    of the same size as the weights.

    malloc's settings apply to the whole process, so only the command line calls this function. A
    program that wants the same can call it too:
    `from musicgen_jax.runtime import memory; memory.return_freed_memory()`.
    Without this call `give_back` and `mapped` do nothing. With another C library they never do
    anything.
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

    Freeing such an array returns its memory to the system at once. Otherwise the memory would stay
    in the arena of the allocating thread, where `give_back` cannot release it.
    """
    _set_malloc(_MMAP_THRESHOLD, 1 << 18)
    try:
        yield
    finally:
        # The values that glibc itself sets once a program has freed a large array.
        _set_malloc(_MMAP_THRESHOLD, 1 << 25)
        _set_malloc(_TRIM_THRESHOLD, 1 << 26)


def _set_malloc(option: int, value: int) -> None:
    if _returning:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(option, value)
