"""How the tests compile: quickly, and what has been compiled once is loaded from the disk.

Most of the suite's time is XLA compiling programs of a few dozen numbers, each of which runs once
or twice. `.ci/run` repeats the golden files with XLA's default optimisation level, and a test that
reads a compiled program passes `by_default()` to compile it.

The workers of one run share a cache on disk, and so do the processes that tests start. JAX's key
for a program covers its operations, the flags and the versions, so a changed program is compiled
anew. A test about compiling asks for the fixture `nothing_cached`.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time

from tests.helpers.paths import COMPILED

# Flag, value here, value by default. Whoever names the first in `XLA_FLAGS` decides about all.
_FLAGS = (
    ("xla_backend_optimization_level", 0, 3),
    ("xla_cpu_parallel_codegen_split_count", 1, 32),  # splitting a small program costs a sixth
    ("xla_cpu_use_fusion_emitters", False, True),  # gone from newer versions
)
_READ_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"

_KEPT_SECONDS = 3 * 24 * 3600.0
_PROGRAMS_OF_A_CONTEXT = 100  # what a program brings into its context stays as long as the context


def _known(*words: str) -> bool:
    """Whether XLA knows these flags: an unknown one would end the process, so another one tries."""
    environment = os.environ | {"XLA_FLAGS": " ".join(words)}
    command = [sys.executable, "-c", _READ_FLAGS]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def quick_flags() -> str:
    """`XLA_FLAGS` for this process and those it starts, to be set before JAX is used."""
    given = os.environ.get("XLA_FLAGS", "")
    if _FLAGS[0][0] in given:
        return given
    words = [f"--{flag}={str(quick).lower()}" for flag, quick, _ in _FLAGS]
    if not _known(*words):
        words = [word for word in words if _known(word)]
    return " ".join([given, *words]).strip()


def by_default() -> dict[str, int | bool]:
    """The `compiler_options` that undo `quick_flags` for one program."""
    given = os.environ.get("XLA_FLAGS", "")
    return {flag: default for flag, _, default in _FLAGS if flag in given}


def remove_old_programs() -> None:
    """Removes programs that are several days old from the shared folder.

    JAX would do that itself, given a size limit, but then it takes a lock for every program and
    looks through the whole folder at every write.
    """
    for entry in COMPILED.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another worker was quicker
            if time.time() - entry.stat().st_mtime > _KEPT_SECONDS:
                entry.unlink()


def share_contexts() -> None:
    """JAX makes an MLIR context for each program; here a hundred in succession share one.

    Making and freeing a context takes longer than all else that JAX does to hand XLA a small
    program, and the programs come out the same. Only the main thread shares: no two threads may
    use one context.
    """
    from jax._src.interpreters import mlir

    make = getattr(mlir, "make_ir_context", None)
    if make is None:  # another version of JAX: its own way is slower, and as right
        return
    context, left = None, 0

    def shared():
        nonlocal context, left
        if threading.current_thread() is not threading.main_thread():
            return make()
        if not left:
            context, left = make(), _PROGRAMS_OF_A_CONTEXT
        left -= 1
        return context

    mlir.make_ir_context = shared
