"""Compiled once, kept on disk: the next process loads what this one compiled.

JAX has such a cache but keeps it off. Here it is on, for whoever loads a model with
`from_pretrained`, in `musicgen-jax/compiled` of the user's cache folder. `MUSICGEN_JAX_CACHE` names
another folder, or is `off`. Whoever has set JAX's own `jax_compilation_cache_dir` keeps that.

An entry is machine code. JAX's key for it holds the program, the compiler's version and options,
and a fingerprint of the device, which for a CPU covers the instructions it has: on another type of
machine that shares the folder an entry is not found, rather than found and run. Whoever can write
to the folder can make this process run anything: the default folder is the user's alone.
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
MAX_BYTES = 2 << 30  # dozens of large models' programs; the least recently used go first
_OFF = ("off", "0", "no", "none", "false")
_INTERRUPTED_SECONDS = 60.0  # no write takes so long


def folder() -> Path | None:
    """Where compiled programs are to be kept, None if the user wants none kept."""
    chosen = os.environ.get(VARIABLE, "").strip()
    if chosen.lower() in _OFF:
        return None
    return Path(chosen).expanduser() if chosen else user_cache() / "compiled"


def enable() -> Path | None:
    """Turns JAX's cache of compiled programs on, unless the user has decided about it.

    Never fails: where nothing can be written there is no cache. Programs that compile in no time
    are kept too: a first clip takes a dozen of them, and each costs more to compile than to load.

    Returns:
      The folder in use, None if there is no cache.
    """
    config: Any = jax.config  # its options are attributes that only exist at run time
    if not config.jax_enable_compilation_cache:
        return None
    if config.jax_compilation_cache_dir:
        return Path(config.jax_compilation_cache_dir)
    path = folder()
    # JAX bounds its folder only with filelock's help; without a bound it would grow for ever.
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
    """What `counting` has counted.

    Attributes:
      compiled: programs compiled.
      loaded: programs found in the cache.
      seconds: spent on both.
    """

    compiled: int = 0
    loaded: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def counting() -> Iterator[Compilations]:
    """Counts the programs that this process compiles or loads while the context lasts."""
    counts = Compilations()
    requests = 0

    def on_event(event: str, **_) -> None:
        counts.loaded += event == "/jax/compilation_cache/cache_hits"

    def on_duration(event: str, duration_secs: float, **_) -> None:
        nonlocal requests
        if event == "/jax/core/compile/backend_compile_duration":  # loading counts as one, too
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
    """Whether files can be made there, and nobody else owns it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return False
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


def _remove_interrupted(path: Path) -> None:
    """Removes what a killed process left half written.

    JAX writes an entry in place and beside it, last, the time of its use. An entry without one
    would neither be read nor replaced, and would stop JAX from tidying, hence from writing at all.
    """
    with contextlib.suppress(OSError):
        for entry in path.glob("*-cache"):
            stamp = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
            complete = stamp.exists() and stamp.stat().st_size == 8
            if not complete and time.time() - entry.stat().st_mtime > _INTERRUPTED_SECONDS:
                entry.unlink(missing_ok=True)
                stamp.unlink(missing_ok=True)
