"""Options that several commands share, without jax: `--help` answers at once."""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_jax.config import JOINS
from musicgen_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds what shapes the music beside its prompt."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="same seed, same music")
    add("--greedy", action="store_true", help="always the most likely token: no sampling")
    add("--top-k", type=int, default=250, metavar="K", help="sample among K tokens; 0: all")
    add("--top-p", type=float, default=0.0, metavar="P", help="sample among mass P; 0: all")
    add("--temperature", type=float, default=1.0, metavar="T", help="higher is wilder")
    add("--cfg-coef", type=float, default=3.0, metavar="C", help="how far to follow the prompt")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `MusicGen.generate` of `add_sampling`, but the seed."""
    return {
        "use_sampling": not args.greedy,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "temperature": args.temperature,
        "cfg_coef": args.cfg_coef,
    }


def add_windows(parser: argparse.ArgumentParser) -> None:
    """Adds how windows follow each other in a long piece."""
    parser.add_argument(
        "--extend-stride",
        type=float,
        metavar="SECONDS",
        help="from one window to the next in a long piece; without: 18 of 30",
    )
    parser.add_argument("--join", choices=JOINS, default="hard", help="how windows meet")


def add_separate(parser: argparse.ArgumentParser) -> None:
    """Adds `--separate` and `--no-separate`."""
    parser.add_argument(
        "--separate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="hear the melody without its drums and bass, as the original does (needs the "
        "converted separator htdemucs); without either: if that is there",
    )


def separate(args: argparse.Namespace) -> bool | None:
    """What the user chose, else whether the separator is there, saying so if it is not."""
    from musicgen_jax.conditioning.melody import NOT_SEPARATED, separator_at_hand

    if args.separate is None and not separator_at_hand():
        print(f"musicgen-jax: {NOT_SEPARATED}", file=sys.stderr)
        return False
    return args.separate


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Adds `--devices`."""
    parser.add_argument(
        "--devices",
        type=_devices,
        metavar="N|DATAxMODEL",
        help="spread the clips over N devices; or over DATA groups of MODEL devices that share "
        "the weights of one model, as 4x2",
    )


def mesh(args: argparse.Namespace) -> "Mesh | None":
    """The mesh that `--devices` asks for, None for the first device alone.

    Raises:
      UserError: there are fewer devices.
    """
    if args.devices is None:
        return None
    from musicgen_jax.runtime import sharding

    data, model = args.devices
    return sharding.make_mesh(data=data, model=model)


def _devices(text: str) -> tuple[int, int]:
    data, cross, model = text.partition("x")
    if data.isascii() and data.isdigit() and int(data) > 0:
        if not cross:
            return int(data), 1
        if model.isascii() and model.isdigit() and int(model) > 0:
            return int(data), int(model)
    raise argparse.ArgumentTypeError(f"must be a number, as 8, or two, as 4x2, got {text!r}")


def check_writable(file: Path) -> None:
    """Finds out before minutes of work, by trying: permissions alone do not tell."""
    if file.is_dir():
        raise UserError(f"cannot write {file}: it is a folder")
    if file.exists() and not os.access(file, os.W_OK):
        raise UserError(f"cannot write {file}: it is write-protected")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None
