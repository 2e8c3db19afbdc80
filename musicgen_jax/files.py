"""Files and folders that appear whole or not at all, and files that are read within a bound.

Every writer of this package uses `new_file`, `write_bytes` or `new_folder`. They write to a
temporary name next to the target, in the same folder and so on the same disk, flush it to the disk
and rename it into place. The temporary name belongs to one writer alone: two processes that write
the same target never touch each other's half-written files.

A process that is killed leaves its temporary behind. Its name says what it is (`.HEX.part`, 16 hex
digits, the first eight of which stand for the target's name), and while its process lives the
system holds a lock on it. So the next writer can tell which files are abandoned.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import filelock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from musicgen_jax.errors import UserError, reason, user_error

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part")  # earlier releases named their files like this too
MAX_JSON = 1 << 24  # bytes: far more than any file of settings has
# How long a temporary may be empty and not locked yet, and how long one may be written where the
# file system has no locks.
_UNLOCKED_SECONDS, _ABANDONED_SECONDS = 60.0, 86_400.0


# --- Reading -----------------------------------------------------------------------------------


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Reads a file of at most `max_bytes`; its size is checked before anything is allocated.

    Raises:
      UserError: there is no such file, it is larger, it is not a regular file (opening a pipe would
        wait forever), or it cannot be read.
    """
    with user_error("read", path):
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"cannot read {path}: not a file")
        if found.st_size > max_bytes:
            raise UserError(f"cannot read {path}: larger than {_size(max_bytes)}")
        with open(path, "rb") as file:
            return file.read(max_bytes)


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_JSON) -> dict[str, Any]:
    """Reads a JSON object, in UTF-8 with or without a byte order mark.

    Raises:
      UserError: as `read_bytes`, or the file is not JSON, or JSON but not an object.
    """
    try:
        value = json.loads(read_bytes(path, max_bytes).decode("utf-8-sig"))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {reason(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not readable JSON: it must hold an object")
    return value


# --- Copying -----------------------------------------------------------------------------------


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies a regular file into a folder that is being written.

    A link is refused: it may lead to any file of this user, which would then be passed on.

    Raises:
      UserError: the source is a link, a pipe or a folder, or cannot be read or written.
    """
    with user_error("copy", source):
        if os.path.islink(source) or not os.path.isfile(source):
            raise UserError(
                f"cannot copy {source}: a link or not a regular file; copy it with cp -L first"
            )
        shutil.copyfile(source, target)


def copy_folder(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies a folder of regular files, see `copy_file`; hidden ones stay behind.

    Raises:
      UserError: something in it is a link or not a regular file, or the disk is full.
    """
    with user_error("copy", source):
        os.mkdir(target)
        for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
            if entry.name.startswith("."):  # the operating system's
                continue
            inner = os.path.join(target, entry.name)
            if entry.is_dir(follow_symlinks=False):
                copy_folder(entry.path, inner)
            else:
                copy_file(entry.path, inner)


# --- Writing files -----------------------------------------------------------------------------


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write; it appears at `path` when the block ends, and replaces an older one.

    Missing folders on the way are made. If the block fails, nothing is left.

    Raises:
      UserError: the file cannot be written, or the disk is full.
    """
    target = Path(path)
    with user_error("write", target):
        _make_parents(target)
        temporary = temporary_name(target)
        try:
            with temporary.open("xb") as file:
                _lock(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(target.parent)


def _make_parents(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # of the parents one is a file
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Writes a whole file; it appears at `path` complete, and replaces an older one.

    Raises:
      UserError: the file cannot be written, or the disk is full.
    """
    with new_file(path) as file:
        file.write(data)


# --- Writing folders ---------------------------------------------------------------------------


def check_vacant(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    ours: Callable[[Path], bool] | None = None,
) -> None:
    """Refuses a target that holds something; an empty folder is vacant.

    Args:
      path: where a folder is to be made.
      overwrite: whether a folder may be replaced.
      ours: whether a folder is of the kind that may be replaced. None: nothing is ever replaced.

    Raises:
      UserError: something is there and stays.
    """
    target = Path(path)
    with user_error("write", target):
        if not os.path.lexists(target):
            return
        if target.is_dir():
            if not any(target.iterdir()):
                return
            if overwrite and ours is not None and ours(target):
                return
    if overwrite:
        hint = "musicgen-jax did not write it: choose another folder"
    else:
        hint = "choose another folder" + (", or overwrite it" if ours else "")
    raise UserError(f"{target} exists already: {hint}")


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    ours: Callable[[Path], bool] | None = None,
) -> Iterator[Path]:
    """A temporary folder to fill; it is renamed to `path` when the block ends.

    If the block fails, nothing is left. If two processes make the same folder, both finish theirs;
    the first one's stays, unless the other may overwrite it.

    Args:
      path: the folder to make, with its missing parents.
      overwrite: see `check_vacant`.
      ours: see `check_vacant`.

    Raises:
      UserError: something is at `path`, or the folder cannot be written.
    """
    target = Path(path).absolute()
    with user_error("write", target):
        restore(target)
        check_vacant(target, overwrite=overwrite, ours=ours)
        _make_parents(target)
        _remove_leftovers_of(target)
        temporary = temporary_name(target)
        temporary.mkdir()
        try:
            with _locked(temporary):
                yield temporary
                _sync_tree(temporary)
                _put(temporary, target, overwrite=overwrite, ours=ours)
        except BaseException:
            _remove_tree(temporary)
            raise
        _sync(target.parent)


def _remove_tree(folder: Path) -> None:
    """Removes a folder, although threads of a writer that failed may still write into it."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.05)


def _put(temporary: Path, target: Path, *, overwrite: bool, ours) -> None:
    """Renames a full folder into place.

    The system renames a folder only to a free name or onto an empty folder. So no process can
    replace a folder that another one has put there in the meantime without checking it again.
    """
    old = displaced_name(target)
    while True:
        with contextlib.suppress(OSError):
            target.rmdir()  # if it is empty: Windows does not rename onto a folder at all
        try:
            os.rename(temporary, target)
            break
        except OSError:
            if not os.path.lexists(target):
                restore(target)
                raise
        check_vacant(target, overwrite=overwrite, ours=ours)
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another writer has just moved it
            os.rename(target, old)
    shutil.rmtree(old, ignore_errors=True)


def displaced_name(target: Path) -> Path:
    """Where a folder lies between the two renames that replace it."""
    return target.with_name(f".{target.name}.old")


def restore(target: Path) -> None:
    """Puts back a folder whose replacement was killed between its two renames."""
    old = displaced_name(target)
    if old.is_dir() and not os.path.lexists(target):
        with contextlib.suppress(FileNotFoundError):
            os.rename(old, target)


# --- One process at a time ---------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool = True) -> Iterator[None]:
    """Lets one process at a time into the block, by a lock file `.NAME.lock` next to `path`.

    The system releases the lock of a process that dies. Its file stays, and means nothing.

    Args:
      path: what the block works on.
      wait: whether to wait for another process; otherwise its lock is an error.

    Raises:
      UserError: another process has the lock, or the file cannot be written.
    """
    target = Path(path).absolute()
    file = target.with_name(f".{target.name}.lock")
    lock = filelock.FileLock(file)
    with user_error("write", target):
        _make_parents(target)
        try:
            lock.acquire(timeout=-1 if wait else 0)
            while not file.exists():  # the process that had the lock has just deleted its file
                lock.release()
                lock.acquire(timeout=-1 if wait else 0)
        except filelock.Timeout:
            raise UserError(f"another process is writing {target}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows deletes no open file
            file.unlink()
        lock.release()


# --- Temporary names and what is left of them --------------------------------------------------


def temporary_name(target: Path) -> Path:
    """A new name next to `target`; it is short, since `target` may already have the longest name.

    Its first eight digits are the same for all temporaries of one target.
    """
    return target.with_name(f".{_digits(target)}{secrets.token_hex(4)}.part")


def unused_name(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, ... that does not exist yet."""
    names = (path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 10_000)))
    return next(name for name in names if not os.path.lexists(name))


def remove_abandoned(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes left unfinished in a folder that this package alone writes."""
    with user_error("read", folder), contextlib.suppress(FileNotFoundError):
        for entry in Path(folder).iterdir():
            if TEMPORARY.fullmatch(entry.name):
                _remove_if_abandoned(entry)


def _remove_leftovers_of(target: Path) -> None:
    """Removes what killed processes left of one target, by today's names and by earlier ones."""
    for entry in target.parent.glob(f".{_digits(target)}????????.part"):
        if TEMPORARY.fullmatch(entry.name):
            _remove_if_abandoned(entry)
    _remove_if_abandoned(target.with_name(f".{target.name}.partial"))


def _digits(target: Path) -> str:
    return f"{zlib.crc32(os.fsencode(target.name)):08x}"


def _remove_if_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):  # another process removes it too, or it is not ours
        age = time.time() - path.lstat().st_mtime
        just_made = age < _UNLOCKED_SECONDS and _is_empty(path)
        if just_made or (_is_locked(path) and age < _ABANDONED_SECONDS):
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _is_empty(path: Path) -> bool:
    """A writer locks its temporary before it fills it: one that is not empty has had its lock."""
    found = path.lstat()
    return not (any(path.iterdir()) if stat.S_ISDIR(found.st_mode) else found.st_size)


def _lock(descriptor: int) -> bool:
    """Locks an open file until it is closed; False if another process has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, or the file system has no locks: then age alone decides
        return False
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = _open_folder(folder)
    try:
        if descriptor is not None:
            _lock(descriptor)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_locked(path: Path) -> bool:
    """Whether a process may still be writing there."""
    if fcntl is None:
        return True
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


# --- To the disk -------------------------------------------------------------------------------


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        _sync(Path(parent))


def _sync(folder: Path) -> None:
    """Flushes the names in a folder. Not every system can; then a crash may lose the rename."""
    descriptor = _open_folder(folder)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
        os.close(descriptor)


def _open_folder(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return None


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count} bytes"
