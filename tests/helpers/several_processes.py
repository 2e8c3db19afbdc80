"""Several processes of one JAX program, on CPU devices."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.helpers.paths import ROOT


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_together(
    command: Callable[[str, int], list[str]],
    folder: Path,
    *,
    count: int = 2,
    devices: int = 2,
    seconds: float = 240,
) -> list[tuple[int | None, str]]:
    """Runs Python `count` times, with `command(address, process)` as its arguments.

    Args:
      command: makes the arguments.
      folder: for the output.
      count: of the processes.
      devices: of each process.
      seconds: to wait at most.

    Returns:
      exit code, None if it had to be killed, and output of each; none outlives the call.
    """
    ended = _run(command, folder, count, devices, seconds)
    if any("in use" in log for _, log in ended):  # the port went to somebody else meanwhile
        ended = _run(command, folder, count, devices, seconds)
    return ended


def _run(
    command: Callable[[str, int], list[str]], folder: Path, count: int, devices: int, seconds: float
) -> list[tuple[int | None, str]]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "PYTHONPATH": str(ROOT),
    }
    address = f"127.0.0.1:{free_port()}"
    processes = []
    try:
        for i in range(count):
            words = [sys.executable, *command(address, i)]
            with (folder / f"{i}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(words, stdout=log, stderr=log, env=environment, cwd=ROOT)
                )
        deadline = failed = time.monotonic() + seconds
        while None in (codes := [process.poll() for process in processes]):
            if any(codes):  # the others know soon, or would wait for it forever
                failed = min(failed, time.monotonic() + 20)
            if time.monotonic() > min(deadline, failed):
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(code, (folder / f"{i}.log").read_text()[-2000:]) for i, code in enumerate(codes)]
