"""`musicgen-jax evaluate`: how far a folder of clips is from a reference."""

import argparse
import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_jax.errors import UserError

if TYPE_CHECKING:
    from musicgen_jax.metrics.evaluation import Embedding

METRICS = ("fad", "kad", "kld", "clap", "chroma")
EMBEDDINGS = ("vggish", "clap", "encodec", "mert")
PROTOCOLS = ("audiocraft", "fadtk", "stable-audio")
# Which protocols define which figures; a distance by its embedding, the others by their name.
_DEFINED = {
    "vggish": ("audiocraft", "fadtk"),
    "clap": ("fadtk",),
    "encodec": ("fadtk",),
    "mert": ("fadtk",),
    "kld": ("audiocraft",),
    "chroma": PROTOCOLS,  # independent of level and windows
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    add("--audio", required=True, metavar="DIR", help="the folder of clips to judge")
    add(
        "--reference",
        required=True,
        metavar="DIR|FILE.npz",
        help="a folder of real clips, or statistics: from --save-statistics, or fadtk's file",
    )
    add(
        "--metrics",
        type=_metrics,
        metavar="LIST",
        help=f"some of {','.join(METRICS)}; default: all whose weights are here",
    )
    add(
        "--embedding",
        choices=EMBEDDINGS,
        default="vggish",
        help="the network for fad and kad; encodec needs no further weights",
    )
    add(
        "--protocol",
        choices=PROTOCOLS,
        help="whose windows and levels to repeat; default: audiocraft with vggish, else fadtk",
    )
    add("--codec", default="nano", metavar="MODEL", help="the codec of --embedding encodec")
    for name in ("vggish", "mert", "passt"):
        add(f"--{name}", metavar="FOLDER", help=f"the converted weights of {name}, if elsewhere")
    add("--out", metavar="FOLDER", help="where to write report.json and report.md")
    add(
        "--cache",
        metavar="FOLDER",
        help="where to keep what the networks make of each clip; default: OUT/features",
    )
    add("--save-statistics", metavar="FILE.npz", help="write the reference's mean and covariance")
    add("--json", action="store_true", help="print the report as JSON")


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

    Raises:
      UserError: a folder or weights are missing.
    """
    statistics = Path(args.reference).suffix.lower() == ".npz"
    if args.save_statistics is not None:
        if statistics:
            raise UserError(f"{args.reference} contains statistics already: nothing to save")
        if Path(args.save_statistics).suffix.lower() != ".npz":
            raise UserError(f"statistics are written to a .npz file, got {args.save_statistics!r}")
    for place in (args.audio, args.reference):
        if not Path(place).exists():
            raise UserError(f"{place} does not exist")

    from tqdm import tqdm

    from musicgen_jax.metrics import statistics_file
    from musicgen_jax.metrics.evaluation import Plan, evaluate
    from musicgen_jax.metrics.passt import Passt
    from musicgen_jax.runtime import compile_cache

    compile_cache.enable()
    protocol = args.protocol or ("audiocraft" if args.embedding == "vggish" else "fadtk")
    possible, reasons = _possible(args, protocol, statistics)
    embedding = None
    if {"fad", "kad"} & set(possible):
        try:
            embedding = _open_embedding(args, protocol)
        except UserError as error:
            possible = _without(possible, ("fad", "kad"), str(error), reasons)
    passt = None
    if "kld" in possible:
        try:
            passt = Passt.from_pretrained(args.passt)
        except UserError as error:
            possible = _without(possible, ("kld",), str(error), reasons)
    if args.metrics and (missing := [name for name in args.metrics if name not in possible]):
        raise UserError(f"cannot compute {missing[0]}: {reasons[missing[0]]}")
    if not possible:
        raise UserError("; ".join(f"cannot compute {name}: {why}" for name, why in reasons.items()))
    out = Path(args.out) if args.out else None
    plan = Plan(
        Path(args.audio),
        Path(args.reference),
        tuple(possible),
        protocol,
        loud=protocol == "audiocraft",
        embedding=embedding,
        passt=passt,
        not_computed=reasons,
        cache=Path(args.cache) if args.cache else out / "features" if out else None,
    )

    def bar(items: Any, total: int, desc: str) -> Any:
        return tqdm(items, total=total, desc=desc, unit="clip", disable=not sys.stderr.isatty())

    report, target = evaluate(plan, bar)
    if args.save_statistics is not None:
        if target is None or embedding is None:
            raise UserError("--save-statistics needs fad among the metrics")
        about = {"embedding": embedding.name, "weights": embedding.weights, "protocol": protocol}
        statistics_file.write(args.save_statistics, target, about)
    if out is not None:
        _write(out / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
        _write(out / "report.md", _markdown(report))
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else _summary(report))


def _possible(
    args: argparse.Namespace, protocol: str, statistics: bool
) -> tuple[list[str], dict[str, str]]:
    """The metrics that can be computed as far as the arguments say, and why not the others."""
    possible, reasons = [], {}
    for name in args.metrics or METRICS:
        defined = _DEFINED.get(args.embedding if name in ("fad", "kad") else name, ())
        if name == "clap":
            reasons[name] = "this version of musicgen-jax has no network for it"
        elif protocol not in defined:
            what = f"{name} on {args.embedding}" if name in ("fad", "kad") else name
            reasons[name] = f"{protocol} defines no {what}, only {' and '.join(defined)}"
        elif statistics and name != "fad":
            reasons[name] = f"it needs the reference's audio, and {args.reference} has none"
        else:
            possible.append(name)
    return possible, reasons


def _without(
    possible: list[str], names: tuple[str, ...], reason: str, reasons: dict[str, str]
) -> list[str]:
    for name in names:
        if name in possible:
            reasons[name] = reason
    return [name for name in possible if name not in names]


def _open_embedding(args: argparse.Namespace, protocol: str) -> "Embedding":
    if args.embedding == "encodec":
        from musicgen_jax.codec import Codec
        from musicgen_jax.metrics.codec_embedding import CodecEmbedding

        return CodecEmbedding(Codec.from_pretrained(args.codec))
    if args.embedding == "vggish":
        from musicgen_jax.metrics.vggish import Vggish

        return Vggish.from_pretrained(args.vggish, protocol)
    if args.embedding == "mert":
        from musicgen_jax.metrics.mert_embedding import MertEmbedding

        return MertEmbedding.from_pretrained(args.mert)
    raise UserError(f"this version of musicgen-jax has no network {args.embedding}")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _summary(report: dict[str, Any]) -> str:
    lines = [f"{name}: {_line(result)}" for name, result in report["metrics"].items()]
    lines += [f"{name}: not computed: {why}" for name, why in report["not_computed"].items()]
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    for side in ("audio", "reference"):
        if skipped := report[side]["skipped"]:
            first = f"{skipped[0]['id']}: {skipped[0]['reason']}"
            lines.append(
                f"skipped {len(skipped)} of {report[side]['clips']} clips ({side}): {first}"
            )
    return "\n".join(lines)


def _line(result: dict[str, Any]) -> str:
    if "embedding" in result:
        known = result["reference_rows"]
        rows = f"{result['rows']} rows" + (f" against {known}" if known else "")
        return f"{result['value']:.6g} ({result['embedding']}, {result['protocol']}, {rows})"
    return f"{result['value']:.6g} ({result['pairs']} pairs, {result['protocol']})"


def _markdown(report: dict[str, Any]) -> str:
    """The figures as a table, then how they were computed, then the clips left out."""
    lines = ["# Evaluation", "", f"Clips: `{report['audio']['path']}`, "
        f"{report['audio']['measured']} of {report['audio']['clips']} measured. "
        f"Reference: `{report['reference']['path']}`.", "",
        "| metric | value | protocol |", "|---|---|---|"]  # fmt: skip
    for name, result in report["metrics"].items():
        kind = f"{name} on {result['embedding']}" if "embedding" in result else name
        lines.append(f"| {kind} | {result['value']:.6g} | {result['protocol']} |")
    lines += ["", "## Definitions", ""]
    for name, result in report["metrics"].items():
        lines.append(f"- **{name}**: {result['definition']}. {result.get('method', '')}".rstrip())
    notes = [f"{name}: not computed: {why}" for name, why in report["not_computed"].items()]
    notes += report["warnings"]
    for side in ("audio", "reference"):
        notes += [f"skipped {s['id']} ({side}): {s['reason']}" for s in report[side]["skipped"]]
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"
