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
this process run arbitrary code. So the default folder is private to the user, and a folder that
others can write to is not used. `program_store` says what is in it.
"""

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax import monitoring

from musicgen_jax.runtime import program_store, user_folders
from musicgen_jax.runtime.user_folders import VARIABLE

__all__ = ["VARIABLE", "Compilations", "announcing", "counting", "enable", "folder"]

_HIT = "/jax/compilation_cache/cache_hits"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_NOTICEABLE = 0.5  # seconds of compiling
MAX_BYTES = 2 << 30  # programs of dozens of large models; the least recently used go first
folder = user_folders.compiled_programs


def enable() -> Path | None:
    """Turns on JAX's cache of compiled programs, unless the user turned it off.

    This never fails: if the folder cannot be written, there is no cache; if others can write to it,
      one line on stderr says so, and there is no cache either. Programs that compile fast
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
    if path is None or not user_folders.usable(path):
        return None
    if open_folder := user_folders.others_can_write(path):
        print(
            f"musicgen-jax: compiled programs are not kept in {path}: others can write to "
            f"{open_folder}; make it private, or set {VARIABLE} to another folder",
            file=sys.stderr,
        )
        return None
    program_store.install(path)
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
        counts.loaded += event == _HIT

    def on_duration(event: str, duration_secs: float, **_) -> None:
        nonlocal requests
        if event == _COMPILED:  # loading counts as well
            requests += 1
            counts.seconds += duration_secs
            counts.compiled = requests - counts.loaded

    with _listening(on_event, on_duration):
        yield counts


@contextlib.contextmanager
def announcing(tell: Callable[[], object]) -> Iterator[None]:
    """Calls `tell` once if this process compiles for a noticeable time within the context.

    Programs that are loaded from the cache do not count. The small programs come first, so `tell`
    is called before the long ones, in the thread that compiles.
    """
    spent, told = 0.0, False
    thread = threading.local()  # a hit and its duration come from one thread

    def on_event(event: str, **_) -> None:
        if event == _HIT:
            thread.loaded = True

    def on_duration(event: str, duration_secs: float, **_) -> None:
        nonlocal spent, told
        if event != _COMPILED:
            return
        if getattr(thread, "loaded", False):
            thread.loaded = False
            return
        spent += duration_secs
        if spent > _NOTICEABLE and not told:
            told = True
            tell()

    with _listening(on_event, on_duration):
        yield


@contextlib.contextmanager
def _listening(on_event: Callable[..., None], on_duration: Callable[..., None]) -> Iterator[None]:
    monitoring.register_event_listener(on_event)
    monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield
    finally:
        monitoring.unregister_event_listener(on_event)
        monitoring.unregister_event_duration_listener(on_duration)
