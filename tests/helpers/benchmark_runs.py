"""Runs a benchmark in a process of its own and gives what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


def figures(*command: str, results: Path | None = None, **environment: str | None) -> dict:
    """The JSON line of `python COMMAND`, run in benchmarks/ on a CPU.

    Args:
      command: a script and its arguments, or `-c` and a program.
      results: the file that a run without `--quick` appends its line to; with `--quick` the line is
        printed.
      environment: variables that are set, or with None not passed on.
    """
    # A benchmark compiles what it measures.
    own = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": None}
    env = {**os.environ, **own, **environment}
    run = subprocess.run(
        [sys.executable, *command, *(["--results", str(results)] if results else [])],
        cwd=BENCHMARKS,
        env={name: value for name, value in env.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = results.read_text(encoding="utf-8") if results else run.stdout
    return json.loads(lines.splitlines()[-1])
