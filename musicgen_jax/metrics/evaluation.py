"""A set of clips measured against a reference, with the exact definition of every figure."""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_jax.console import Bar, plain
from musicgen_jax.errors import UserError, printable
from musicgen_jax.metrics.features import Described, Extractor, describe
from musicgen_jax.metrics.measures import Known, Measure, Scores

METRICS = ("fad", "kad", "kld", "clap", "chroma")
_SILENT = 1e-4  # of full scale: a clip whose peak stays below -80 dBFS
_VERSIONS = ("musicgen-jax", "jax", "numpy")
_NAMED = 10  # ids in a warning


@dataclasses.dataclass(frozen=True)
class ClipSet:
    """Clips to measure.

    Attributes:
      place: where the clips come from, for the report.
      clips: {id: file}.
      left_out: {id: reason} of clips that are left out from the beginning.
    """

    place: str
    clips: Mapping[str, Path]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to compute.

    Attributes:
      audio: the clips to judge.
      reference: the clips to compare with; None if there are none, or if statistics replace them.
      measures: the measures to feed.
      statistics: (place, SHA-256, what the file says about itself) of a file of statistics.
      not_computed: {metric: reason} for metrics that no measure gives, for the report.
      warnings: for the report.
      cache: a folder for the networks' features of each clip; None for no cache.
    """

    audio: ClipSet
    reference: ClipSet | None
    measures: tuple[Measure, ...]
    statistics: tuple[str, str, Mapping[str, Any]] | None = None
    not_computed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    cache: Path | None = None


def summary(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Seconds, rate, channels, peak and RMS of a clip, float64 [5]."""
    seconds = wav.shape[1] / sample_rate
    rms = np.sqrt(np.square(wav, dtype=np.float64).mean())
    return np.array([seconds, sample_rate, len(wav), np.abs(wav).max(), rms])


_SUMMARY = Extractor("summary 1", summary)


def evaluate(plan: Plan, bar: Bar = plain) -> dict[str, Any]:
    """Computes the metrics of a plan.

    Clips that cannot be read or measured are skipped, named and counted.

    Args:
      plan: what to compute.
      bar: shows the progress.

    Returns:
      the report, in plain JSON types: "metrics", "not_computed", "warnings", "audio", "reference",
      "clips" and "versions".

    Raises:
      UserError: none of the clips could be measured, or none of the metrics computed.
    """
    reference, audio = _Heard(), _Heard()
    *before, (_, wanted) = sides(plan)
    for clips, of_reference in before:
        found = describe(clips.clips, of_reference, plan.cache)
        for clip in bar(found, total=len(clips.clips), desc="measuring the reference"):
            for measure in plan.measures if reference.add(clip) else ():
                if measure.name in clip.values:
                    measure.hear_reference(clip.name, clip.values[measure.name])
        reference.requiresome(clips)
    found = describe(plan.audio.clips, wanted, plan.cache)
    scores: dict[str, Scores] = {}
    for clip in bar(found, total=len(plan.audio.clips), desc="measuring the clips"):
        if not audio.add(clip):
            continue
        scores[clip.name] = {}
        for measure in plan.measures:
            if measure.name in clip.values:
                scores[clip.name] |= measure.hear(clip.name, clip.values[measure.name])
    audio.requiresome(plan.audio)

    statistics = plan.statistics
    warnings = [*plan.warnings, *audio.warnings("audio"), *reference.warnings("reference")]
    known = Known(statistics[1] if statistics else reference.identity, warnings.append)
    results, not_computed = {}, dict(plan.not_computed)
    for measure in plan.measures:
        for metric, figure in measure.figures(known).items():
            if isinstance(figure, UserError):
                not_computed[metric] = str(figure)
            else:
                results[metric] = figure
    if not results:
        why = "; ".join(f"cannot compute {name}: {text}" for name, text in not_computed.items())
        raise UserError(why or "there is nothing to compute")
    return {
        "metrics": {name: results[name] for name in METRICS if name in results},
        "not_computed": not_computed,
        "warnings": warnings,
        "audio": _set_report(plan.audio, audio),
        "reference": _reference_report(plan, reference),
        "clips": [
            {"id": printable(name)} | audio.about(name) | values
            for name, values in sorted(scores.items())
        ],
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def sides(plan: Plan) -> list[tuple[ClipSet, dict[str, Extractor]]]:
    """The clips of a plan, each set with the extractors that the measures need."""
    found = []
    if plan.reference is not None:
        wanted = {m.name: m.reference for m in plan.measures if m.reference is not None}
        found.append((plan.reference, wanted | {"summary": _SUMMARY}))
    wanted = {measure.name: measure.generated for measure in plan.measures}
    return [*found, (plan.audio, wanted | {"summary": _SUMMARY})]


def describe_all(plan: Plan, bar: Bar = plain) -> int:
    """Computes the features of all clips of a plan that the measures need, only for the cache.

    Returns:
      how many clips it described.
    """
    described = 0
    for clips, wanted in sides(plan):
        found = describe(clips.clips, wanted, plan.cache)
        for clip in bar(found, total=len(clips.clips), desc="measuring"):
            described += not clip.fault
    return described


class _Heard:
    """The outcome for the clips of a set."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self.partly: dict[str, dict[str, str]] = {}  # by clip and extractor
        self.silent: list[str] = []
        self.shapes: set[tuple[int, int]] = set()
        self._abouts: dict[str, tuple[float, ...]] = {}
        self._contents = hashlib.sha256()

    def add(self, clip: Described) -> bool:
        """Takes a clip; False if nothing could be measured of it."""
        if not clip.fault and clip.faults and clip.values.keys() <= {"summary"}:
            clip = dataclasses.replace(clip, fault=next(iter(clip.faults.values())))
        if clip.fault:
            self.faults[clip.name] = clip.fault
            return False
        if clip.faults:
            self.partly[clip.name] = clip.faults
        name = clip.name.encode("utf-8", "surrogateescape")
        self._contents.update(b"%s\0%s\n" % (name, clip.content.encode()))
        about = tuple(clip.values["summary"].tolist())
        _, rate, channels, peak, _ = about
        self._abouts[clip.name] = about
        self.shapes.add((int(rate), int(channels)))
        if peak < _SILENT:
            self.silent.append(clip.name)
        return True

    @property
    def measured(self) -> int:
        return len(self._abouts)

    @property
    def identity(self) -> str:
        """SHA-256 of the ids and contents of the measured clips."""
        return self._contents.hexdigest()

    def about(self, name: str) -> dict[str, float]:
        return {"seconds": round(self._abouts[name][0], 3)} if name in self._abouts else {}

    def requiresome(self, clips: ClipSet) -> None:
        if not self.measured:
            first = next(iter(self.faults), None)
            why = f": {self.faults[first]}" if first is not None else ""
            raise UserError(
                f"none of {len(clips.clips)} clips of {clips.place} could be measured{why}"
            )

    def warnings(self, side: str) -> list[str]:
        found = []
        if self.silent:
            found.append(f"{count(len(self.silent), 'silent clip')} ({side}): {some(self.silent)}")
        if len(self.shapes) > 1:
            kinds = ", ".join(f"{rate} Hz x {channels}" for rate, channels in sorted(self.shapes))
            found.append(f"the clips ({side}) have several rates or channels ({kinds}): converted")
        for key in dict.fromkeys(key for faults in self.partly.values() for key in faults):
            names = [name for name, faults in self.partly.items() if key in faults]
            why = self.partly[names[0]][key]
            which = "fad and kad" if key == "embedding" else key
            found.append(
                f"{count(len(names), 'clip')} ({side}) left out of {which}: {some(names)}; the "
                f"first: {why}"
            )
        return found


def count(number: int, what: str) -> str:
    """`number` things, as "1 clip" or "2 clips"."""
    return f"{number} {what}{'s' * (number != 1)}"


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(printable, names[:_NAMED])) + more


def _set_report(clips: ClipSet, heard: _Heard) -> dict[str, Any]:
    skipped = dict(clips.left_out) | heard.faults
    return {
        "path": printable(clips.place),
        "clips": len(clips.clips) + len(clips.left_out),
        "measured": heard.measured,
        "identity": heard.identity,
        "skipped": [{"id": printable(name), "reason": why} for name, why in skipped.items()],
        "partly": [
            {"id": printable(name), "reasons": faults} for name, faults in heard.partly.items()
        ],
    }


def _reference_report(plan: Plan, heard: _Heard) -> dict[str, Any]:
    if plan.statistics is not None:
        place, digest, about = plan.statistics
        report = _set_report(ClipSet(place, {}), heard)
        return report | {"identity": digest, "statistics": dict(about)}
    if plan.reference is None:
        return _set_report(ClipSet("none", {}), heard)
    return _set_report(plan.reference, heard) | {"statistics": {}}
