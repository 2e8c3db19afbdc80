"""The records of a run: a line of JSON each, and a line of text for people."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax

from musicgen_jax.config.schema import parse_json

METRICS = "metrics.jsonl"
Log = Callable[[dict], None]


def records(folder: str | os.PathLike) -> list[dict]:
    """The records in a run's metrics.jsonl, except for an incomplete last line."""
    path = Path(folder) / METRICS
    found = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):
            record = parse_json(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                found.append(record)
    return found


def say(line: str) -> None:
    """Prints and flushes a line; only the first process prints."""
    if not jax.process_index():
        print(line, flush=True)


def printing(log: Log, steps: int, *, began_at: int = 0, say: Callable[[str], None] = say) -> Log:
    """Wraps `log` so that it also prints each record with the remaining time.

    Args:
      log: receives the records, for example `Run.log`.
      steps: total steps of the run.
      began_at: the first step of this process.
      say: receives the lines.
    """
    start = time.monotonic()

    def both(record: dict) -> None:
        log(record)
        step = record["step"]
        rate = (time.monotonic() - start) / max(step - began_at, 1)
        shown = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in record.items()
            if name not in ("step", "seconds") and not name.startswith(("ce_q", "ppl_q"))
        )
        left = f", {_duration(rate * (steps - step))} left" if step < steps else ""
        say(f"step {step} of {steps}: {shown}{left}")

    return both


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes}:{seconds:02} min"
