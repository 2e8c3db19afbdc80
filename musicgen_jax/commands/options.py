"""Options that several commands share. No jax: `--help` answers at once."""

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_jax.config import DTYPES, JOINS
from musicgen_jax.errors import UserError, user_error
from musicgen_jax.generation.settings import DEFAULT_DURATION, DEFAULT_SAMPLING, MAX_SLOTS, Sampling

if TYPE_CHECKING:
    from jax.sharding import Mesh


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`."""
    parser.add_argument(
        "--model",
        default="nano",
        help="nano, nano-melody, a converted model's folder, or an official name such as "
        "musicgen-small",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Adds `--dtype`."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of the language model; int8 is fastest on a CPU, but the music is not "
        "exactly the same (default: float32 on a CPU, bfloat16 elsewhere)",
    )


def add_duration(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds `--duration`, whose help is `what`."""
    parser.add_argument(
        "--duration", type=float, default=DEFAULT_DURATION, metavar="SECONDS", help=what
    )


def add_negative(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Adds `--negative`; `more` follows in its help."""
    parser.add_argument(
        "--negative", metavar="TEXT", help=f"what the music should move away from{more}"
    )


def add_schedule(parser: argparse.ArgumentParser) -> None:
    """Adds `--schedule`."""
    parser.add_argument(
        "--schedule",
        metavar="FILE",
        help="changes while the music plays: a text file with SECONDS and a description on each "
        'line, or a .jsonl file with {"seconds": S} on each line, and any of "prompt", '
        '"negative_prompt", "cfg_coef" or "temperature"',
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the seed and the options of `Sampling`."""
    add, default = parser.add_argument, DEFAULT_SAMPLING
    add("--seed", type=int, default=0, help="same seed, same music")
    add("--greedy", action="store_true", help="always take the most likely token")
    add("--top-k", type=int, default=default.top_k, metavar="K",
        help="sample among the K most likely tokens; 0: all")  # fmt: skip
    add("--top-p", type=float, default=default.top_p, metavar="P",
        help="sample among the most likely tokens that reach probability P; 0: all")  # fmt: skip
    add("--temperature", type=float, default=default.temperature, metavar="T",
        help="higher is more random")  # fmt: skip
    add("--cfg-coef", type=float, default=default.cfg_coef, metavar="C",
        help="how closely to follow the prompt")  # fmt: skip


def sampling(args: argparse.Namespace) -> Sampling:
    """The sampling that `add_sampling`, and `--cfg-coef-beta` where there is one, ask for."""
    return Sampling(
        use_sampling=not args.greedy,
        top_k=args.top_k,
        top_p=args.top_p,
        temperature=args.temperature,
        cfg_coef=args.cfg_coef,
        cfg_coef_beta=getattr(args, "cfg_coef_beta", None),
    )


def keywords(sampling: Sampling) -> dict[str, Any]:
    """The same as arguments of `MusicGen.generate`, which takes no `cfg_coef_beta`."""
    named = dataclasses.asdict(sampling)
    del named["cfg_coef_beta"]
    return named


def add_reports(parser: argparse.ArgumentParser) -> None:
    """Adds `--quiet` and `--json`."""
    add = parser.add_mutually_exclusive_group().add_argument
    add("-q", "--quiet", action="store_true", help="print nothing about clips, and no progress")
    add("--json", action="store_true", help="print a line of JSON for each clip")


def add_windows(parser: argparse.ArgumentParser) -> None:
    """Adds how windows follow each other in a long piece."""
    parser.add_argument(
        "--extend-stride",
        type=float,
        metavar="SECONDS",
        help="seconds between the windows of a long piece (default: 3/5 of the model's window: "
        "18 of 30 s)",
    )
    parser.add_argument("--join", choices=JOINS, default="hard", help="how windows are joined")


def add_separate(parser: argparse.ArgumentParser) -> None:
    """Adds `--separate` and `--no-separate`."""
    parser.add_argument(
        "--separate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="remove drums and bass from the melody first, as the original does; needs the "
        "converted separator htdemucs (default: on if it is installed)",
    )


def separate(args: argparse.Namespace) -> bool | None:
    """What the user chose, else whether the separator is installed, with a line if it is not."""
    from musicgen_jax.conditioning.melody import NOT_SEPARATED, separator_at_hand

    if args.separate is None and not separator_at_hand():
        print(f"musicgen-jax: {NOT_SEPARATED}", file=sys.stderr)
        return False
    return args.separate


def add_slots(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds `--slots`, whose help is `what`."""
    parser.add_argument("--slots", type=_slots, metavar="N", help=what)


def add_clips_at_once(parser: argparse.ArgumentParser) -> None:
    """Adds `--slots` and `--batch-size`, for a folder of clips."""
    add_slots(
        parser,
        "clips that the device makes at once; the result of a seed depends on it (default: as the "
        "folder was started, else 4 on a CPU and 8 elsewhere, times the parts of the data axis of "
        "--devices)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="clips in hand at once, in a slot or waiting for one; changes no clip (default: twice "
        "the slots)",
    )


def _slots(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_SLOTS:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be an integer from 1 to {MAX_SLOTS}, got {text!r}")


def add_ray(group: argparse._ActionsContainer) -> None:
    """Adds `--ray`."""
    group.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="spread the work over a Ray cluster, host:port; without ADDRESS over the one that "
        "this machine belongs to. A machine that is lost costs only time",
    )


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Adds `--devices`."""
    parser.add_argument(
        "--devices",
        type=_devices,
        metavar="N|DATAxMODEL",
        help="spread the work over N devices; or over DATA groups of MODEL devices that share "
        "the weights of one model, such as 4x2 (default: the first device)",
    )


def mesh(args: argparse.Namespace) -> "Mesh | None":
    """The mesh that `--devices` asks for, None for the first device alone.

    Raises:
      UserError: there are fewer devices, or some process would have none of them.
    """
    if args.devices is None:
        return None
    import jax

    from musicgen_jax.runtime import sharding

    data, model = args.devices
    if jax.process_count() > 1 and data * model < jax.device_count():
        raise UserError(
            f"--devices {data}x{model} leaves out some of the {jax.device_count()} devices of "
            f"{jax.process_count()} processes: use all of them"
        )
    return sharding.make_mesh(data=data, model=model)


def _devices(text: str) -> tuple[int, int]:
    data, cross, model = text.partition("x")
    if data.isascii() and data.isdigit() and int(data) > 0:
        if not cross:
            return int(data), 1
        if model.isascii() and model.isdigit() and int(model) > 0:
            return int(data), int(model)
    raise argparse.ArgumentTypeError(
        f"must be a number such as 8, or two such as 4x2, got {text!r}"
    )


def check_writable(file: Path) -> None:
    """UserError now, before minutes of work, if `file` cannot be written."""
    if file.is_dir():
        raise UserError(f"cannot write {file}: it is a folder")
    if file.exists() and not os.access(file, os.W_OK):
        raise UserError(f"cannot write {file}: it is write-protected")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    with user_error("write", file), tempfile.TemporaryFile(dir=folder):
        pass
