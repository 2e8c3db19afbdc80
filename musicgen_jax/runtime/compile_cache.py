"""Keeps compiled programs on disk, so that the next process loads them instead of compiling.

JAX has such a cache, but it is off by default. The command line turns it on. The cache is a setting
of the whole process, so importing the package or loading a model does not turn it on. In a
notebook, use this line:

    from musicgen_jax.runtime import compile_cache; compile_cache.enable()

The cache is `musicgen-jax/compiled` in the user's cache folder. Set the environment variable
`MUSICGEN_JAX_CACHE` to another folder, or to `off`. If JAX's own `jax_compilation_cache_dir` is
set, that folder is used.

An entry is machine code. JAX's key for an entry covers the program, the compiler's version and
options, and the device. For a CPU the key covers its instruction set too, so a different type of
machine that shares the folder does not load the entry. Anyone who can write to the folder can make
this process run arbitrary code, so the default folder is private to the user.
"""

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax import monitoring

from musicgen_jax.runtime.user_folders import user_cache

VARIABLE = "MUSICGEN_JAX_CACHE"
MAX_BYTES = 2 << 30  # programs of dozens of large models; the least recently used go first
_OFF = ("off", "0", "no", "none", "false")
_INTERRUPTED_SECONDS = 60.0  # no write takes this long


def folder() -> Path | None:
    """The folder for compiled programs; None if the user turned it off or has no home folder."""
    chosen = os.environ.get(VARIABLE, "").strip()
    if chosen.lower() in _OFF:
        return None
    if chosen:
        return Path(os.path.expanduser(chosen))
    cache = user_cache()
    return cache and cache / "compiled"


def enable() -> Path | None:
    """Turns on JAX's cache of compiled programs, unless the user turned it off.

    This never fails: if the folder cannot be written, there is no cache. Programs that compile fast
    are cached too: a first clip needs a dozen of them, and each takes longer to compile than to
    load.

    Returns:
      The folder in use; None if there is no cache.
    """
    config: Any = jax.config  # its options are attributes that exist only at run time
    if not config.jax_enable_compilation_cache:
        return None
    if config.jax_compilation_cache_dir:
        return Path(config.jax_compilation_cache_dir)
    path = folder()
    # JAX limits the size of its folder only if filelock is installed.
    if path is None or importlib.util.find_spec("filelock") is None or not _usable(path):
        return None
    _remove_interrupted(path)
    if config.jax_compilation_cache_max_size == -1:
        config.update("jax_compilation_cache_max_size", MAX_BYTES)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_compilation_cache_dir", str(path))
    return path


@dataclasses.dataclass
class Compilations:
    """The counts of `counting`.

    Attributes:
      compiled: number of programs compiled.
      loaded: number of programs loaded from the cache.
      seconds: time spent compiling and loading.
    """

    compiled: int = 0
    loaded: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def counting() -> Iterator[Compilations]:
    """Counts the programs that this process compiles or loads within the context."""
    counts = Compilations()
    requests = 0

    def on_event(event: str, **_) -> None:
        counts.loaded += event == "/jax/compilation_cache/cache_hits"

    def on_duration(event: str, duration_secs: float, **_) -> None:
        nonlocal requests
        if event == "/jax/core/compile/backend_compile_duration":  # loading counts as well
            requests += 1
            counts.seconds += duration_secs
            counts.compiled = requests - counts.loaded

    monitoring.register_event_listener(on_event)
    monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield counts
    finally:
        monitoring.unregister_event_listener(on_event)
        monitoring.unregister_event_duration_listener(on_duration)


def _usable(path: Path) -> bool:
    """Whether this process can create files in the folder, and this user owns it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return False
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


def _remove_interrupted(path: Path) -> None:
    """Removes entries that a killed process left half-written.

    JAX writes an entry in place, and then a file with its access time next to it. It neither reads
    nor replaces an entry without an access time. Its clean-up also stops at such an entry, so JAX
    stops writing entries.
    """
    with contextlib.suppress(OSError):
        for entry in path.glob("*-cache"):
            stamp = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
            complete = stamp.exists() and stamp.stat().st_size == 8
            if not complete and time.time() - entry.stat().st_mtime > _INTERRUPTED_SECONDS:
                entry.unlink(missing_ok=True)
                stamp.unlink(missing_ok=True)
