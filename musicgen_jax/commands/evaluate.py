"""`musicgen-jax evaluate`: how far clips are from real ones, and how well they fit their texts."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_jax import console
from musicgen_jax.commands import hosts, options, ray_work
from musicgen_jax.commands.batch import _worker
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.protocols import PROTOCOLS

if TYPE_CHECKING:
    from musicgen_jax.commands.evaluate_captions import Work
    from musicgen_jax.commands.evaluate_measures import Opened
    from musicgen_jax.metrics.evaluation import ClipSet, Plan

METRICS = ("fad", "kad", "kld", "clap", "chroma")
EMBEDDINGS = ("vggish", "clap", "encodec", "mert")
NETWORKS = ("vggish", "clap", "mert", "passt")
_SECONDS = 10.0  # of a clip of MusicCaps
_EVERY = 30.0  # seconds between lines of progress when stderr is not a terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument(
        "--audio", metavar="DIR|MANIFEST", help="the clips to judge: a folder or a manifest"
    )
    judged.add_argument(
        "--model",
        help="model that makes the clips first, one for each caption: nano, a folder or a name",
    )
    add = parser.add_argument
    add(
        "--reference",
        metavar="DIR|MANIFEST|FILE.npz",
        help="real clips; or statistics: a file from --save-statistics, fadtk's file, or fma_pop",
    )
    add(
        "--captions",
        metavar="FILE",
        help="the clips' captions: MusicCaps' csv as published, or any csv, tsv or jsonl "
        "file with columns id and caption",
    )
    add(
        "--metrics",
        type=_metrics,
        metavar="LIST",
        help=f"some of {','.join(METRICS)}; default: all that are possible",
    )
    add(
        "--embedding",
        choices=EMBEDDINGS,
        help="the network for fad and kad; default: vggish if it is converted, else encodec, "
        "which needs no further weights",
    )
    add(
        "--protocol",
        choices=tuple(PROTOCOLS),
        help="whose windows, levels and directions to follow; default: audiocraft's where it "
        "defines the metric, else fadtk's",
    )
    add("--codec", default="nano", metavar="MODEL", help="the codec of --embedding encodec")
    for name in NETWORKS:
        add(f"--{name}", metavar="FOLDER", help=f"folder of the converted weights of {name}")
    add("--out", metavar="REPORT", help="folder for report.json, report.md, report.html")
    add(
        "--cache",
        metavar="FOLDER",
        help="where to cache the networks' features of each clip; default: OUT/features",
    )
    add("--save-statistics", metavar="FILE.npz", help="write the reference's mean and covariance")
    console.add_arguments(parser, as_json="print the report as JSON")
    shared = parser.add_mutually_exclusive_group()
    shared.add_argument(
        "--worker",
        type=_worker,
        default="1/1",
        metavar="I/N",
        help="do part I of N of the work and no report; several machines may share OUT. Then run "
        "it once without --worker",
    )
    options.add_ray(shared)
    make = parser.add_argument_group("with --model")
    make.add_argument("--limit", type=int, metavar="N", help="only the first N captions")
    options.add_clips_at_once(make)  # type: ignore[arg-type]
    make.add_argument(
        "--duration", type=float, default=_SECONDS, metavar="SECONDS", help="length of each clip"
    )
    options.add_sampling(make)  # type: ignore[arg-type]
    options.add_devices(make)  # type: ignore[arg-type]
    hosts.add_arguments(parser)


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in METRICS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not a metric: choose from {', '.join(METRICS)}"
            )
    return names


def run(args: argparse.Namespace) -> None:
    """Measures the clips and reports.

    If there are several processes, the first one reads, measures and writes. All of them make the
    clips.

    Raises:
      UserError: a folder or weights are missing, or nothing can be computed.
    """
    _check(args)
    if not hosts.asked_for(args):  # otherwise only the first process needs them
        _check_places(args)
    hosts.start(args)

    from musicgen_jax.runtime import compile_cache, processes

    compile_cache.enable()
    opened = processes.in_first(lambda: _open(args))
    shown = console.Console.of(args)
    if args.model:
        from musicgen_jax.commands import evaluate_captions

        bar = partial(_bar, shown) if opened else console.plain
        evaluate_captions.make(args, opened and opened.work, bar)
    processes.part()
    if opened is not None:
        _measure(args, opened, shown)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """Everything that is read before the first clip is made.

    Attributes:
      work: the clips of a model; None for a folder of clips.
      audio: the clips of a folder; None for those of a model.
      reference: the clips to compare with; None for statistics, or for nothing.
      texts: captions by id.
      measures: what can be measured.
      cache: where to keep the networks' features.
    """

    work: "Work | None"
    audio: "ClipSet | None"
    reference: "ClipSet | None"
    texts: dict[str, str]
    measures: "Opened"
    cache: Path | None


def _open(args: argparse.Namespace) -> _Opened:
    _check_places(args)

    from musicgen_jax.commands import evaluate_captions, evaluate_measures
    from musicgen_jax.metrics import captions, clips, evaluation, statistics_file

    statistics = statistics_file.find(args.reference) if args.reference else None
    if statistics and args.save_statistics:
        raise UserError(f"{args.reference} contains statistics already: nothing to save")
    texts = captions.read(args.captions) if args.captions else {}
    known = {} if statistics or not args.reference else clips.find_clips(args.reference)
    out = Path(args.out) if args.out else None
    work = audio = None
    if args.model:
        assert out is not None
        work = evaluate_captions.Work(args, texts, known, out)
        files = work.files
    else:
        audio = evaluation.ClipSet(args.audio, clips.find_clips(args.audio))
        files = audio.clips
    reference = None
    if known:
        reference = evaluation.ClipSet(args.reference, known)
        if args.model:  # the protocol compares a caption's clip with that clip
            reference = evaluation.ClipSet(
                args.reference,
                {name: file for name, file in known.items() if name in files},
                {name: "no caption" for name in known if name not in texts},
            )
    cache = Path(args.cache) if args.cache else out / "features" if out else None
    measures = evaluate_measures.open_measures(
        args, count=len(files), reference=reference, statistics=statistics, texts=texts, cache=cache
    )
    if args.save_statistics:
        measures.check_statistics()
        options.check_writable(Path(args.save_statistics))
    return _Opened(work, audio, reference, texts, measures, cache)


def _measure(args: argparse.Namespace, opened: _Opened, shown: console.Console) -> None:
    from musicgen_jax.metrics import evaluation

    judged = opened.work.clips if opened.work else opened.audio
    assert judged is not None
    bar = partial(_bar, shown)
    plan = evaluation.Plan(
        judged,
        opened.reference,
        opened.measures.measures,
        opened.measures.statistics,
        opened.measures.not_computed,
        tuple(_unpaired(judged, opened.reference, opened.texts)),
        opened.cache,
    )
    if args.worker[1] > 1:
        _share(args, plan, shown)
        return
    if args.ray:
        from musicgen_jax.commands import evaluate_ray

        evaluate_ray.measure(args.ray, plan, bar)
    report = evaluation.evaluate(plan, bar)
    if opened.work:
        report["model"] = opened.work.about
    if args.out:
        _write(Path(args.out), report, plan, opened.texts)
    if args.save_statistics is not None:
        opened.measures.save_statistics(args.save_statistics)
    from musicgen_jax.metrics.report import summary

    if args.json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        shown.say(summary(report))


def _check(args: argparse.Namespace) -> None:
    """Refuses arguments that do not go together, before anything is loaded."""
    if args.save_statistics and Path(args.save_statistics).suffix.lower() != ".npz":
        raise UserError(f"statistics are written to a .npz file, got {args.save_statistics!r}")
    if args.save_statistics and not args.reference:
        raise UserError("--save-statistics needs --reference")
    if args.save_statistics and args.worker[1] > 1:
        raise UserError("--save-statistics is for the run that reports: leave it out with --worker")
    if not args.reference and not args.captions:
        raise UserError("nothing to compare with: add --reference, --captions or both")
    if args.model and not args.captions:
        raise UserError("--model needs --captions")
    hosts.check_clips(args)
    if hosts.asked_for(args) and not args.model:
        raise UserError("several processes can only share the work of a --model: give one")
    needing = ((args.model, "--model"), (args.worker[1] > 1, "--worker"), (args.ray, "--ray"))
    for value, name in needing:
        if value and not args.out:
            raise UserError(f"{name} needs --out")
    if args.ray:
        ray_work.require()
    for name in ("limit", "batch_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def _check_places(args: argparse.Namespace) -> None:
    """Refuses names of files and folders that are not there."""
    for place in (args.audio, args.captions):
        if place and not Path(place).exists():
            raise UserError(f"{place} does not exist")
    named = args.reference and not Path(args.reference).exists()
    if named:
        from musicgen_jax.metrics import statistics_file

        if args.reference not in statistics_file.NAMED:
            raise UserError(f"{args.reference} does not exist")


def _unpaired(
    judged: "ClipSet", reference: "ClipSet | None", texts: dict[str, str]
) -> Iterator[str]:
    """Warnings about ids that only one side has."""
    if reference is not None:
        ours, theirs = judged.clips.keys(), reference.clips.keys()
        if ours & theirs:
            yield from _missing(ours - theirs, "clip", "without a clip of its name as reference")
            yield from _missing(theirs - ours, "clip", "of the reference without one to judge")
    if texts and (ours := judged.clips.keys()) & texts.keys():
        yield from _missing(ours - texts.keys(), "clip", "without a caption")


def _missing(names: Iterable[str], noun: str, fault: str) -> Iterator[str]:
    from musicgen_jax.metrics.evaluation import count, some

    if found := sorted(names):
        yield f"{count(len(found), noun)} {fault}: {some(found)}"


def _share(args: argparse.Namespace, plan: "Plan", shown: console.Console) -> None:
    """Describes this worker's part of the clips; its features are in the cache."""
    from musicgen_jax.metrics import evaluation

    number, count = args.worker

    def own(clips: "ClipSet | None") -> "ClipSet | None":
        if clips is None:
            return None
        part = dict(list(clips.clips.items())[number - 1 :: count])
        return dataclasses.replace(clips, clips=part)

    # Each worker has only those of the model's clips that it made.
    judged = plan.audio if args.model else own(plan.audio)
    assert judged is not None
    part = dataclasses.replace(plan, audio=judged, reference=own(plan.reference))
    described = evaluation.describe_all(part, partial(_bar, shown))
    shown.made(
        f"part {number} of {count}: measured {described} clips; run without --worker for the "
        "report",
        part=number,
        parts=count,
        clips=described,
    )


def _write(out: Path, report: dict[str, Any], plan: "Plan", texts: dict[str, str]) -> None:
    from musicgen_jax import files
    from musicgen_jax.metrics import page
    from musicgen_jax.metrics.report import markdown

    files.write_bytes(
        out / "report.json", (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()
    )
    files.write_bytes(out / "report.md", markdown(report).encode())
    page.write(out, report, plan.audio.clips, plan.reference.clips if plan.reference else {}, texts)


def _bar(shown: console.Console, items: Iterable[Any], total: int, desc: str) -> Iterable[Any]:
    """Progress with the time that is left: a bar, or a line now and then in a log."""
    if shown.quiet or shown.draws:
        return shown.bar(items, total=total, desc=desc)
    return _lines(items, total, desc)


def _lines(items: Iterable[Any], total: int, desc: str) -> Iterator[Any]:
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if (now := time.monotonic()) - said >= _EVERY:
            said, left = now, (now - start) / done * (total - done)
            print(f"{desc}: {done} of {total}, {left / 60:.0f} min left", file=sys.stderr)
