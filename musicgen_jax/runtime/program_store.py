"""A folder of compiled programs for JAX: entries that are whole, unaltered and this user's own.

JAX's own store trusts what it finds. An entry that a killed process left half-written stays
forever, and an altered entry crashes the process or computes something else. Here an entry appears
whole, carries a digest, and is compiled again if the digest or the owner is wrong.
"""

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from musicgen_jax import files

_DIGEST_BYTES = 32
_SUFFIX = "-cache"  # as JAX names its entries


class ProgramStore:
    """JAX's interface of a cache: `get` and `put` by a key that JAX makes.

    Attributes:
      folder: where the entries are.
      max_bytes: if entries need more, the least recently used go.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self._path = folder  # JAX names it in a warning
        files.remove_abandoned(folder)
        for stamp in folder.glob("*-atime"):  # an entry of JAX's own store, without a digest
            self._entry(stamp.name.removesuffix("-atime")).unlink(missing_ok=True)
            stamp.unlink(missing_ok=True)

    def get(self, key: str) -> bytes | None:
        """The program, or None if there is none that can be trusted."""
        entry = self._entry(key)
        with contextlib.suppress(OSError):
            content = _read_own(entry)
            program, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
            if digest == _digest(key, program):
                os.utime(entry)  # it is in use
                return program
            entry.unlink()
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, unless the disk is full: then the next process compiles it again."""
        entry = self._entry(key)
        temporary = files.temporary_name(entry)
        with contextlib.suppress(OSError):
            self._make_room(len(value) + _DIGEST_BYTES)
            try:
                temporary.write_bytes(value + _digest(key, value))
                os.replace(temporary, entry)
            finally:
                temporary.unlink(missing_ok=True)

    def _entry(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _make_room(self, size: int) -> None:
        if self.max_bytes < 0:  # JAX's word for no limit
            return
        found = []
        for entry in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process has just removed it
                state = entry.lstat()
                found.append((state.st_mtime_ns, state.st_size, entry))
        total = size + sum(entry_size for _, entry_size, _ in found)
        for _, entry_size, entry in sorted(found):
            if total <= self.max_bytes:
                return
            with contextlib.suppress(OSError):
                entry.unlink()
            total -= entry_size


def install(folder: Path) -> None:
    """Lets JAX use a `ProgramStore` for `folder`.

    JAX has no public way to give it a store, so this wraps the function that opens one. A release
    of JAX without that function keeps its own store.
    """
    from jax._src import compilation_cache

    opened: Any = getattr(compilation_cache, "get_file_cache", None)
    if opened is None or getattr(opened, "folder", None) == folder:
        return
    opened = getattr(opened, "original", opened)

    def open_store(path: str) -> Any:
        if Path(path) != folder:
            return opened(path)
        import jax

        return ProgramStore(folder, jax.config.jax_compilation_cache_max_size), path  # type: ignore[attr-defined]

    open_store.folder, open_store.original = folder, opened  # type: ignore[attr-defined]
    compilation_cache.get_file_cache = open_store  # type: ignore[assignment]


def entries(folder: Path) -> list[Path]:
    """The files of programs in a folder, whole or not."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


def damaged(folder: Path) -> list[Path]:
    """The entries that `ProgramStore.get` would not return: altered, cut off or somebody else's."""
    return [entry for entry in entries(folder) if not _is_whole(entry)]


def _is_whole(entry: Path) -> bool:
    try:
        content = _read_own(entry)
    except OSError:
        return False
    key = entry.name.removesuffix(_SUFFIX)
    return content[-_DIGEST_BYTES:] == _digest(key, content[:-_DIGEST_BYTES])


def _digest(key: str, program: bytes) -> bytes:
    return hashlib.sha256(b"musicgen-jax 1\0" + key.encode() + b"\0" + program).digest()


def _read_own(entry: Path) -> bytes:
    """The content of a regular file that this user wrote; nothing of anybody else's."""
    flags = [getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")]
    descriptor = os.open(
        entry, os.O_RDONLY | sum(flags)
    )  # follows no link, and does not wait for a pipe
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        return file.read() if own and stat.S_ISREG(found.st_mode) else b""
