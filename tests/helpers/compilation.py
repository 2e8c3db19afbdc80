"""How the tests have XLA compile: quickly, since nearly every program here runs once or twice.

Most of the suite's time went into optimising programs of a few dozen numbers. What XLA makes of
them by default is tried where it matters: `.ci/run` repeats the golden files with the optimisation
level of 3, and a test that reads a compiled program passes `by_default()` to compile it.
"""

import os
import subprocess
import sys

# Flag, value here, value by default. Whoever names the first in `XLA_FLAGS` decides about all.
_FLAGS = (
    ("xla_backend_optimization_level", 0, 3),
    ("xla_cpu_use_fusion_emitters", False, True),  # gone from newer versions
)

_READ_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"


def _known(flags: str) -> bool:
    """Whether XLA has them: an unknown one would end the process, so another process tries."""
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, "-c", _READ_FLAGS]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def quick_flags() -> str:
    """`XLA_FLAGS` for this process and those it starts, to be set before JAX is used."""
    given = os.environ.get("XLA_FLAGS", "")
    if _FLAGS[0][0] in given:
        return given
    words = [f"--{flag}={str(quick).lower()}" for flag, quick, _ in _FLAGS]
    return " ".join([given, *filter(_known, words)]).strip()


def by_default() -> dict[str, int | bool]:
    """The `compiler_options` that undo `quick_flags` for one program."""
    given = os.environ.get("XLA_FLAGS", "")
    return {flag: default for flag, _, default in _FLAGS if flag in given}
