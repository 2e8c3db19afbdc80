"""`musicgen-jax listen`: a listening study in the browser, and its results."""

import argparse
import json
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_jax import console
from musicgen_jax.console import Console
from musicgen_jax.errors import UserError

if TYPE_CHECKING:
    from musicgen_jax.listening.study import Study

PORT = 8520
_TOKEN = "MUSICGEN_JAX_TOKEN"
_SYSTEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}")
_MOST_SYSTEMS = 12  # of one piece; the most that MUSHRA recommends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    add(
        "--systems",
        nargs="+",
        type=_system,
        metavar="NAME=DIR",
        help="folders of clips to compare; clips of one name belong together, and the system "
        "called reference is hidden among the others and makes the anchor",
    )
    add("--out", metavar="STUDY", help="the study's folder; with --analyse: where results go")
    add("--analyse", metavar="STUDY", help="do not serve: make tables of the raters' answers")
    console.add_arguments(
        parser,
        quiet="print nothing about a new study, and show no progress",
        as_json="with --analyse: print the results as JSON; with --no-serve: what was made",
    )
    add("--least-reference", type=_number(0, 100, "a score from 0 to 100"), default=85.0,
        metavar="SCORE",
        help="with --analyse: leave out raters who give the hidden reference less on average; "
        "0: nobody")  # fmt: skip
    making = parser.add_argument_group("making a study")
    add = making.add_argument
    add(
        "--captions",
        metavar="FILE",
        help="a .csv, .tsv or .jsonl file with id and text, so that raters judge how well clips "
        "fit the text, and melody, an audio file, so that they judge how well clips follow it",
    )
    add("--title", default="Listening study", help="title of the page")
    add("--seed", type=int, default=0, help="seed of each rater's order of pieces and clips")
    add("--per-rater", type=_positive, metavar="N", help="pieces per rater (default: all)")
    add("--must-hear", type=_number(0, 1, "a share from 0 to 1"), default=1.0, metavar="SHARE",
        help="how much of a clip must be heard before it can be scored")  # fmt: skip
    add("--seconds", type=_number(1, 600, "from 1 to 600 seconds"), default=30.0,
        help="longest part of a clip that is kept")  # fmt: skip
    add("--lufs", type=_number(-60, -8, "from -60 to -8 LUFS"), default=-18.0,
        help="loudness of all clips; pieces that would clip become quieter")  # fmt: skip
    add("--skip", action="store_true", help="leave out pieces with a clip that cannot be used")
    add("--no-serve", action="store_true", help="make the study and stop")
    serving = parser.add_argument_group("serving it")
    add = serving.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; any other than this needs a token",
    )
    add("--port", type=int, default=PORT, help="0: a free one")
    add(
        "--token",
        help=f"secret that raters need, part of the link (default: the variable {_TOKEN})",
    )


def run(args: argparse.Namespace) -> None:
    """Makes, serves or analyses a study.

    Raises:
      UserError: the clips, the folder, the address or the answers cannot be used.
    """
    if args.analyse is not None:
        return _analyse(args)
    if args.out is None:
        raise UserError("name the study's folder with --out, or a study to --analyse")
    if args.json and not args.no_serve:
        raise UserError("--json goes with --analyse or --no-serve")
    _serve(args, _prepare(args))


def _prepare(args: argparse.Namespace) -> "Study":
    from musicgen_jax.listening import prepare, study

    folder = Path(args.out)
    if args.systems is None:
        return study.load(folder)
    names = [name for name, _ in args.systems]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two systems are called {name}: give each its own name")
    if study.ANCHOR in names:
        raise UserError(f"the name {study.ANCHOR} is taken: the command makes the anchor itself")
    if len(names) + (study.REFERENCE in names) < 2:
        raise UserError("one system cannot be compared: give --systems at least two")
    if len(names) > _MOST_SYSTEMS:
        raise UserError(f"nobody can compare {len(names)} clips: at most {_MOST_SYSTEMS} systems")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"the seed must be from 0 to 2^63 - 1, got {args.seed}")
    title = " ".join(args.title.split())
    if not 1 <= len(title) <= 200:
        raise UserError("the title must have from 1 to 200 characters")
    plan = prepare.Plan(
        systems={name: Path(folder) for name, folder in args.systems},
        captions=Path(args.captions) if args.captions is not None else None,
        title=title,
        seed=args.seed,
        per_rater=args.per_rater,
        must_hear=args.must_hear,
        seconds=args.seconds,
        lufs=args.lufs,
        skip=args.skip,
    )
    return prepare.prepare(plan, folder, _note, Console.of(args).bar)


def _note(line: str) -> None:
    print(f"musicgen-jax: {line}", file=sys.stderr)


def _serve(args: argparse.Namespace, found: "Study") -> None:
    from musicgen_jax.listening.answers import Answers
    from musicgen_jax.listening.server import LOOPBACK, StudyServer

    folder = Path(args.out)
    Console.of(args).made(
        f"{folder}: {len(found.items)} pieces, {len(found.systems)} clips each "
        f"({', '.join(found.systems)}), {found.per_rater} pieces per rater",
        folder=str(folder),
        pieces=len(found.items),
        systems=list(found.systems),
        per_rater=found.per_rater,
    )
    if args.no_serve:
        return
    token = args.token or os.environ.get(_TOKEN) or None
    if token is None and args.host not in LOOPBACK:
        raise UserError(
            f"on {args.host} others can get in: add --token with a long word, for example "
            f"--token {secrets.token_urlsafe(12)}"
        )
    with (
        Answers(folder, found) as answers,
        StudyServer(found, folder, answers, host=args.host, port=args.port, token=token) as server,
    ):
        try:
            print(f"open {server.url} (Ctrl-C stops; the same command continues)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"\nstopped; musicgen-jax listen --analyse {folder} shows the results")


def _analyse(args: argparse.Namespace) -> None:
    from musicgen_jax import files
    from musicgen_jax.listening import analysis, plot, study
    from musicgen_jax.listening.answers import Answers
    from musicgen_jax.listening.screening import Rules

    if args.systems is not None:
        raise UserError("--analyse takes an existing study: leave out --systems")
    folder = Path(args.analyse)
    found = study.load(folder)
    with Answers(folder, found, create=False) as store:
        raters, answers = store.raters(), store.all()
    results = analysis.analyse(found, raters, answers, Rules(reference=args.least_reference))
    out = Path(args.out) if args.out is not None else folder / "results"
    counted = results["raters"]["counted"]
    as_json = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False)
    for name, text in {
        "answers.csv": analysis.answers_csv(found, raters, answers, counted),
        "results.json": as_json + "\n",
        "results.md": analysis.markdown(results),
        "results.svg": plot.svg(results),
    }.items():
        files.write_bytes(out / name, text.encode("utf-8", "backslashreplace"))
    if args.json:
        print(as_json)
    else:
        Console.of(args).say(f"{analysis.summary(results)}\n\nwrote {out}")


# --- Arguments --------------------------------------------------------------------------------


def _system(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals or not folder:
        raise argparse.ArgumentTypeError(f"must be NAME=DIR, got {text!r}")
    if not _SYSTEM.fullmatch(name):
        raise argparse.ArgumentTypeError(
            f"a system's name may have only letters, digits and _.+-, got {name!r:.60}"
        )
    return name, folder


def _number(lowest: float, highest: float, what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
        return value

    return parse


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value
