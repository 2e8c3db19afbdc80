"""`evaluate --ray`: the networks of the metrics on a Ray cluster.

Each worker gets the networks once, with their weights, then the files of clips, and sends what
`features` keeps of them. This process fills the cache with that, and reports as without Ray.
"""

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicgen_jax import files
from musicgen_jax.commands import ray_work
from musicgen_jax.console import Bar
from musicgen_jax.metrics import evaluation, features
from musicgen_jax.metrics.features import Extractor

_AT_ONCE = 2  # one is measured while the next one travels
_LARGEST = 1 << 30  # bytes of a clip's file; a larger one is measured here


def measure(address: str, plan: evaluation.Plan, bar: Bar) -> None:
    """Measures the clips of a plan that its cache lacks.

    A clip that cannot be measured leaves the cache as it is: the report will find out why.

    Raises:
      UserError: as in `ray_work.spread`.
    """
    assert plan.cache is not None
    sides = evaluation.sides(plan)
    jobs = []
    for side, (clips, extractors) in enumerate(sides):
        for name in features.uncached(clips.clips, extractors, plan.cache):
            file = clips.clips[name]
            if file.stat().st_size <= _LARGEST:
                jobs.append((side, file))
    if not jobs:
        return
    work = ray_work.Work(
        functools.partial(_MeasureWorker, [extractors for _, extractors in sides]),
        dict.fromkeys(jobs),
        at_once=_AT_ONCE,
        pack=lambda job: (job[0], job[1].suffix, files.read_bytes(job[1], _LARGEST)),
    )
    done = ray_work.spread(address, work)
    for _, entries in bar(done, total=len(jobs), desc="measuring"):
        for name, content in entries.items():
            files.write_bytes(plan.cache / name, content)


class _MeasureWorker:
    """The networks, in an actor."""

    def __init__(self, sides: list[Mapping[str, Extractor]]):
        from musicgen_jax.runtime import compile_cache

        compile_cache.enable()
        self._sides = sides
        self.about: dict[str, Any] = {}

    def do(self, packed: tuple[int, str, bytes]) -> dict[str, bytes]:
        """The entries of the cache for a clip, by name."""
        side, suffix, content = packed
        with tempfile.TemporaryDirectory() as folder:
            clip, cache = Path(folder, f"clip{suffix}"), Path(folder, "features")
            clip.write_bytes(content)
            for _ in features.describe({"clip": clip}, self._sides[side], cache):
                pass
            return {entry.name: entry.read_bytes() for entry in cache.glob("*.npy")}
