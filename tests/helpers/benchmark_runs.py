"""Runs a benchmark in a process of its own and gives what it found."""

import json
import os
import subprocess
import sys

from tests.helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


def figures(*command: str, **environment: str | None) -> dict:
    """The JSON line of `python COMMAND`, run in benchmarks/ on a CPU.

    Args:
      command: a script and its arguments, or `-c` and a program.
      environment: variables that are set, or with None not passed on.
    """
    # A benchmark compiles what it measures.
    own = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": None}
    env = {**os.environ, **own, **environment}
    run = subprocess.run(
        [sys.executable, *command],
        cwd=BENCHMARKS,
        env={name: value for name, value in env.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])
