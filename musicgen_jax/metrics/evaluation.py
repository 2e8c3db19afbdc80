"""A set of clips measured against a reference, with the exact definition of every figure."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from musicgen_jax import audio
from musicgen_jax.errors import UserError
from musicgen_jax.metrics import statistics_file
from musicgen_jax.metrics.chroma import agreement, loudest_classes
from musicgen_jax.metrics.clips import UNCHANGED, Extractor, Level, features, find_clips
from musicgen_jax.metrics.divergence import kl_divergence
from musicgen_jax.metrics.frechet import (
    Gaussian,
    RunningGaussian,
    distance,
    expected_bias,
    gaussian,
)
from musicgen_jax.metrics.kernel import kernel_audio_distance, median_distance
from musicgen_jax.metrics.passt import Passt

METRICS = ("fad", "kad", "kld", "clap", "chroma")
_KERNEL_ROWS = 20_000  # of each side at most: the cost grows with their square
_BARS = {"audio": "measuring the clips", "reference": "measuring the reference"}

# audiocraft sets generated audio to this level before it measures anything, references not.
LOUD = Level(
    "-14 LUFS, clipped",
    lambda wav, rate: audio.normalize_audio(wav, rate, "loudness", loudness_headroom_db=14),
)


class Embedding(Protocol):
    """A network that turns a clip into rows."""

    name: str

    @property
    def weights(self) -> str:
        """A digest of its weights."""
        ...

    @property
    def definition(self) -> str:
        """How a clip becomes rows, in words."""
        ...

    def embed(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Rows of one clip, float [C, W] to float32 [rows, D]."""
        ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to compute.

    Attributes:
      audio: the folder of clips to judge.
      reference: a folder of clips, or a `.npz` of statistics.
      metrics: those of `METRICS` that can be computed.
      protocol: its name, for the report.
      loud: set generated clips to -14 LUFS first, as audiocraft does.
      embedding: for "fad" and "kad".
      passt: for "kld".
      not_computed: {metric: reason} for the others, for the report.
      cache: a folder for what the networks make of each clip; None for no cache.
    """

    audio: Path
    reference: Path
    metrics: tuple[str, ...]
    protocol: str
    loud: bool = False
    embedding: Embedding | None = None
    passt: Passt | None = None
    not_computed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cache: Path | None = None


class _Side:
    """The features of one set of clips, gathered."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.running = RunningGaussian()
        self.sample = RowSample(_KERNEL_ROWS)
        self.by_clip: dict[str, dict[str, np.ndarray]] = {}
        self.skipped: dict[str, str] = {}

    def read(
        self,
        clips: Mapping[str, Path],
        level: Level,
        each: Callable[[str, dict[str, np.ndarray]], None],
        bar: Callable[..., Any],
        what: str,
    ) -> None:
        found = features(clips, _extractors(self.plan), level, self.skipped, self.plan.cache)
        for name, values in bar(found, total=len(clips), desc=what):
            rows = values.pop("embedding", None)
            if rows is not None:
                self.running.update(rows)
                if "kad" in self.plan.metrics:
                    self.sample.add(rows)
                each(name, {"embedding": rows})
            self.by_clip[name] = values


class RowSample:
    """At most `limit` rows of a stream, each kept with equal chance; the seed is fixed."""

    def __init__(self, limit: int):
        self.limit, self.seen = limit, 0
        self._rows: list[np.ndarray] = []
        self._rng = np.random.default_rng(0)

    def add(self, rows: np.ndarray) -> None:
        """Takes rows [n, D]."""
        for row in rows:
            self.seen += 1
            if len(self._rows) < self.limit:
                self._rows.append(row)
            elif (at := int(self._rng.integers(self.seen))) < self.limit:
                self._rows[at] = row

    def rows(self) -> np.ndarray:
        """The rows, float [n, D]."""
        return np.stack(self._rows)


def evaluate(
    plan: Plan, bar: Callable[..., Any] = lambda items, **_: items
) -> tuple[dict[str, Any], Gaussian | None]:
    """Computes the metrics of a plan.

    Clips that cannot be read or measured are skipped, named and counted.

    Args:
      plan: what to compute.
      bar: wraps the iteration over clips, as tqdm does, with `total` and `desc`.

    Returns:
      the report, in plain JSON types: "metrics", "not_computed", "audio", "reference", "clips"
      and "warnings"; and the reference's statistics, None without an embedding.

    Raises:
      UserError: a folder is missing or empty, or none of its clips could be measured.
    """
    clips = find_clips(plan.audio)
    reference, about = _Side(plan), {}
    if plan.reference.suffix.lower() == ".npz":
        assert plan.embedding is not None
        target, about = statistics_file.read(plan.reference, plan.embedding.name)
        others: dict[str, Path] = {}
    else:
        target, others = None, find_clips(plan.reference)
        reference.read(others, UNCHANGED, lambda *_: None, bar, _BARS["reference"])
        if plan.embedding is not None:
            target = _gaussian_of_side(reference, plan.reference)
    per_clip: dict[str, dict[str, float | None]] = {}

    def each(name: str, values: dict[str, np.ndarray]) -> None:
        rows = values["embedding"]
        if target is not None and "fad" in plan.metrics:
            alone = distance(gaussian(rows), target) if len(rows) > 1 else None
            per_clip.setdefault(name, {})["fad"] = alone

    ours = _Side(plan)
    ours.read(clips, LOUD if plan.loud else UNCHANGED, each, bar, _BARS["audio"])
    results: dict[str, Any] = {}
    not_computed = dict(plan.not_computed)
    warnings: list[str] = []
    if target is not None:
        results |= _distances(plan, ours, reference, target, warnings)
    pairs = sorted(ours.by_clip.keys() & reference.by_clip.keys())
    for metric, measure in (("kld", _divergence), ("chroma", _chroma)):
        if metric not in plan.metrics:
            continue
        if result := measure(plan, ours, reference, pairs, per_clip):
            results[metric] = result
        elif pairs:
            not_computed[metric] = "all pairs of clips are too short"
        else:
            not_computed[metric] = "no clip of one folder has the name of a clip of the other"
    report = {
        "protocol": plan.protocol,
        "metrics": results,
        "not_computed": not_computed,
        "warnings": warnings,
        "audio": _set_report(plan.audio, clips, ours),
        "reference": _set_report(plan.reference, others, reference) | {"statistics": about},
        "clips": [{"id": name} | per_clip[name] for name in sorted(per_clip)],
    }
    return report, target


def _gaussian_of_side(side: _Side, folder: Path) -> Gaussian:
    try:
        return side.running.gaussian()
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _extractors(plan: Plan) -> dict[str, Extractor]:
    found = {}
    if plan.embedding is not None:
        network = plan.embedding
        key = f"{network.name}\n{network.weights}\n{network.definition}"
        found["embedding"] = Extractor(key, network.embed)
    if plan.passt is not None:
        key = f"{plan.passt.name}\n{plan.passt.weights}\n{plan.passt.definition}"
        found["kld"] = Extractor(key, plan.passt.probabilities)
    if "chroma" in plan.metrics:
        found["chroma"] = Extractor("loudest pitch classes", loudest_classes)
    return found


def _distances(
    plan: Plan, ours: _Side, reference: _Side, target: Gaussian, warnings: list[str]
) -> dict[str, Any]:
    assert plan.embedding is not None
    common = {
        "embedding": plan.embedding.name,
        "weights": plan.embedding.weights,
        "protocol": plan.protocol,
        "definition": plan.embedding.definition,
        "clips": len(ours.by_clip),
        "rows": ours.running.count,
        "reference_clips": len(reference.by_clip) or None,
        "reference_rows": target.count or None,
    }
    results = {}
    if "fad" in plan.metrics:
        own = _gaussian_of_side(ours, plan.audio)
        results["fad"] = (
            {"value": distance(own, target)}
            | common
            | {
                "method": "float64, covariance over n - 1, trace by singular values, clamped at 0",
            }
        )
        if own.count < len(own.mean):
            warnings.append(
                f"fad: {own.count} rows for {len(own.mean)} dimensions: the covariance is "
                "incomplete and the distance mostly bias"
            )
        if target.count:
            bias = expected_bias(target, own.count, target.count)
            results["fad"]["expected_bias"] = bias
            if own.count != target.count:
                warnings.append(
                    f"fad: {own.count} and {target.count} rows; sets of these sizes from one "
                    f"Gaussian would score about {bias:.3g}, so compare only figures of equal sizes"
                )
    if "kad" in plan.metrics:
        x, y = ours.sample.rows(), reference.sample.rows()
        bandwidth = median_distance(y)
        results["kad"] = {
            "value": kernel_audio_distance(x, y, bandwidth=bandwidth),
            **common,
            "bandwidth": bandwidth,
            "rows_used": [len(x), len(y)],
            "method": "100 MMD^2, unbiased, Gaussian kernel, median distance of the reference",
        }
    return results


def _divergence(
    plan: Plan,
    ours: _Side,
    reference: _Side,
    pairs: list[str],
    per_clip: dict[str, dict[str, float | None]],
) -> dict[str, Any] | None:
    """KL(reference || generated) over the pieces that both clips of a pair have."""
    assert plan.passt is not None
    p, q = [], []
    for name in pairs:
        real, made = reference.by_clip[name]["kld"], ours.by_clip[name]["kld"]
        if count := min(len(real), len(made)):
            p.append(real[:count])
            q.append(made[:count])
            per_clip.setdefault(name, {})["kld"] = kl_divergence(p[-1], q[-1])
    if not p:
        return None
    known, generated = np.concatenate(p), np.concatenate(q)
    return {
        "value": kl_divergence(known, generated),
        "value_other_way": kl_divergence(generated, known),
        "protocol": plan.protocol,
        "weights": plan.passt.weights,
        "pairs": len(p),
        "pieces": len(known),
        "definition": f"mean KL(reference || generated) over pieces, in nats, 1e-6 added to the "
        f"second; {plan.passt.definition}",
    }


def _chroma(
    plan: Plan,
    ours: _Side,
    reference: _Side,
    pairs: list[str],
    per_clip: dict[str, dict[str, float | None]],
) -> dict[str, Any] | None:
    if not pairs:
        return None
    same = frames = 0
    for name in pairs:
        agreed, total = agreement(ours.by_clip[name]["chroma"], reference.by_clip[name]["chroma"])
        per_clip.setdefault(name, {})["chroma"] = agreed / total
        same, frames = same + agreed, frames + total
    return {
        "value": same / frames,
        "protocol": plan.protocol,
        "pairs": len(pairs),
        "frames": frames,
        "definition": "share of frames with the same loudest of 12 pitch classes; mono at 32 kHz "
        "(julius resampling), window 16384, hop 4096, librosa's filters, silence counts as C",
    }


def _set_report(place: Path, clips: Mapping[str, Path], side: _Side) -> dict[str, Any]:
    return {
        "path": str(place),
        "clips": len(clips),
        "measured": len(side.by_clip),
        "skipped": [{"id": name, "reason": reason} for name, reason in side.skipped.items()],
    }
