"""The folders for a user's files: where they are, and who may write there. No jax."""

import os
import stat
import tempfile
from pathlib import Path

VARIABLE = "MUSICGEN_JAX_CACHE"
_OFF = ("off", "0", "no", "none", "false")


def user_cache() -> Path | None:
    """`musicgen-jax` in the user's cache folder; None if the user has no home folder.

    For example, a container can run without $HOME, as a user that the system does not know.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(cache).expanduser() / "musicgen-jax"
    except RuntimeError:
        return None


def compiled_programs() -> Path | None:
    """The folder for compiled programs; None if the user turned it off or has no home folder."""
    chosen = os.environ.get(VARIABLE, "").strip()
    if chosen.lower() in _OFF:
        return None
    if chosen:
        return Path(os.path.expanduser(chosen))
    cache = user_cache()
    return cache and cache / "compiled"


def usable(path: Path) -> bool:
    """Whether this process can create files in the folder, which is made if it does not exist."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


def others_can_write(path: Path) -> Path | None:
    """The folder through which another user could put a file into `path`, or None.

    It is `path` itself or one of the folders above it. In a folder with the sticky bit, such as
    /tmp, nobody can replace what belongs to somebody else.
    """
    if not hasattr(os, "getuid"):
        return None
    path = path.resolve()
    for folder in (path, *path.parents):
        found = folder.stat()
        trusted = found.st_uid in (os.getuid(), 0) if folder != path else _is_mine(found)
        writable = found.st_mode & stat.S_IWOTH or (
            # Some systems give each user a group of its own, with the user's number.
            found.st_mode & stat.S_IWGRP and found.st_gid not in (os.getuid(), 0)
        )
        if not trusted or (writable and (folder == path or not found.st_mode & stat.S_ISVTX)):
            return folder
    return None


def _is_mine(found: os.stat_result) -> bool:
    return found.st_uid == os.getuid()
