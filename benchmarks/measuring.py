"""Shared by the benchmarks: runs in turn, load from other processes, one JSON line per question.

On a shared machine only ratios within one run mean something. The sides of a comparison therefore
run in turn, round by round, so that a disturbance hits both sides, and every round records how many
cores other processes used meanwhile.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from musicgen_jax.runtime import memory
from musicgen_jax.runtime.bandwidth import memory_streams

RESULTS = Path(__file__).with_name("results.jsonl")
PACKAGES = ("jax", "flax", "numpy", "torch", "transformers")
BUSY = 0.2  # cores in use by others; above that, do not quote a number


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: shows only that it runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines, appended to")
    return parser


def busy_core_seconds() -> float:
    """Busy time of all cores together since the machine started (Linux).

    In a virtual machine it includes time that the host gave to others.
    """
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return float("nan")
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(f) for f in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a run takes, and how many cores other processes used meanwhile."""
    busy, own, start = busy_core_seconds(), time.process_time(), time.perf_counter()
    jax.block_until_ready(run())
    seconds = time.perf_counter() - start
    foreign = (busy_core_seconds() - busy) - (time.process_time() - own)
    return seconds, max(foreign, 0.0) / seconds


def in_turn(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    first_runs: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, dict]:
    """Runs every side once, then `rounds` times in turn.

    A side that fails at its first call is left out, and the result holds its error.

    Args:
      runs: of each side.
      rounds: how often each of them runs.
      first_runs: what each side runs at first instead, to compile the same programs in less time.

    Returns:
      {side: {"first": seconds of the first call, "seconds": [...], "foreign_cores": [...]}}, or
      {side: {"error": text}}.
    """
    result: dict[str, dict] = {}
    for name, run in runs.items():
        try:
            first = measure((first_runs or {}).get(name, run))[0]
        except Exception as error:
            result[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            print(f"{name}: does not run: {result[name]['error']}", flush=True)
            continue
        result[name] = {"first": round(first, 3), "seconds": [], "foreign_cores": []}
        print(f"{name}: first call {first:.2f} s", flush=True)
    for i in range(rounds):
        for name, run in runs.items():
            if "error" in result[name]:
                continue
            seconds, foreign = measure(run)
            result[name]["seconds"].append(round(seconds, 4))
            result[name]["foreign_cores"].append(round(foreign, 2))
            print(f"round {i}: {name} {seconds:.3f} s, others {foreign:.2f} cores", flush=True)
    return result


def summary(result: Mapping[str, dict], work: float, unit: str, ours: str) -> dict:
    """Prints and returns medians, spread and ratios.

    Args:
      result: returned by `in_turn`.
      work: units of work in one run.
      unit: its name, such as "steps".
      ours: the side to compare the others with.

    Returns:
      {"per_second": {side: [median, lowest, highest]}, "ratio": {other side: our speed over its,
      median over rounds}, "quiet": whether nobody else used the machine}.
    """
    sides = {name: entry["seconds"] for name, entry in result.items() if entry.get("seconds")}
    speeds = {name: [work / s for s in seconds] for name, seconds in sides.items()}
    per_second = {n: [statistics.median(v), min(v), max(v)] for n, v in speeds.items()}
    for name, (middle, low, high) in per_second.items():
        print(f"{name}: median {middle:.2f} {unit}/s, {low:.2f} to {high:.2f}")
    ratio = {
        name: statistics.median(a / b for a, b in zip(speeds[ours], values, strict=True))
        for name, values in speeds.items()
        if name != ours and ours in speeds
    }
    for name, value in ratio.items():
        print(f"{ours} against {name}: {value:.2f} times as fast (median of rounds)")
    foreign = [cores for entry in result.values() for cores in entry.get("foreign_cores", [])]
    quiet = max(foreign, default=0.0) <= BUSY
    if not quiet:
        print("note: other processes were busy; do not quote these numbers")
    rounded = {name: [round(v, 3) for v in values] for name, values in per_second.items()}
    return {
        "per_second": rounded,
        "ratio": {name: round(value, 3) for name, value in ratio.items()},
        "quiet": quiet,
    }


def bandwidth(size: int = 1 << 29) -> float:
    """Bytes per second for reading or copying on this device, the better of the two."""
    runs = memory_streams(size, times=1)
    return size / min(measure(run)[0] for _ in range(6) for run in runs.values())


def peak_memory() -> int:
    """The peak memory of this process, in bytes."""
    return memory.peak() or 0


def _commit() -> str:
    """The commit that is checked out, "-dirty" if more than the results differ from it.

    "" outside a repository or without git.
    """

    def git(*words: str) -> str:
        run = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True
        )
        return run.stdout.strip()

    if shutil.which("git") is None:
        return ""
    changed = git("status", "--porcelain", "--untracked-files=no", ":/", f":!{RESULTS.name}")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def processor() -> str:
    """The processor's name, numbers and widest vectors: ratios differ from one kind to another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    vectors = next((name for name in ("amx_tile", "avx512f", "avx2") if name in flags), "")
    numbers = (fields.get("cpu family"), fields.get("model"))
    return f"{fields.get('model name', platform.processor())}, {numbers[0]}/{numbers[1]}, {vectors}"


def record(benchmark: str, args: argparse.Namespace, **values) -> dict:
    """Appends one line to the results and returns it; a `--quick` run is only printed."""
    # The process may be pinned (taskset), which a fair comparison on a busy machine needs: torch's
    # threads wait for each other, and one that is preempted stops them all.
    pinned = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {}
    for name in PACKAGES:
        if name in sys.modules:
            versions[name] = importlib.metadata.version(name)
    line = {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": f"{jax.devices()[0].device_kind}, {platform.machine()}, "
        f"{pinned} of {os.cpu_count()} cores",
        "processor": processor(),
        "versions": versions,
        **values,
    }
    if args.quick:
        print(json.dumps(line))
    else:
        with args.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return line
