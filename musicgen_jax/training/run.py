"""The folder of a training run: what was asked for, what happened, and where to go on.

A run's folder holds config.toml (the settings), run.json (the data's fingerprint), metrics.jsonl
(one record a line), checkpoints/ (one folder per step: the last few, and the best) and, at the end,
report.html with the curves.
"""

import os
from typing import Any


class Run:
    """A run in a folder, new or to be gone on with.

    Args:
      folder: of the run.
      config: a frozen dataclass of settings, saved as config.toml.
      fingerprint: of the data that is trained on.
    """

    def __init__(self, folder: str | os.PathLike, config: Any, *, fingerprint: str):
        raise NotImplementedError

    def log(self, record: dict) -> None:
        """Appends a record, which has "step", to metrics.jsonl."""
        raise NotImplementedError

    def save(self, step: int, state: Any, *, score: float | None = None) -> None:
        """Begins to write a checkpoint; of all scores the lowest is the best."""
        raise NotImplementedError

    def restore(self, abstract: Any) -> tuple[int, Any] | None:
        """The last checkpoint as (step, state) in the shapes and shardings of `abstract`."""
        raise NotImplementedError

    def finish(self) -> None:
        """Waits for the last checkpoint and writes report.html."""
        raise NotImplementedError
