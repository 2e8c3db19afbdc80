"""The file of `--schedule`: what changes while the music plays."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_jax import files
from musicgen_jax.errors import UserError

if TYPE_CHECKING:
    from musicgen_jax.generation.schedule import Cue

_LARGEST = 1 << 22  # bytes


def read(path: str | os.PathLike[str]) -> "tuple[Cue, ...]":
    """The cues of a file, in order.

    Args:
      path: a text file with, on each line, the seconds, a space or a tab, and a description; or a
        .jsonl file with, on each line, the input of `cue_of`. UTF-8; empty lines do not count, nor
        do lines of a text file that begin with #.

    Raises:
      UserError: the file cannot be read, or a line is wrong; the message names the first.
    """
    from musicgen_jax.generation.schedule import check_schedule, cue_of

    path, cues = Path(path), []
    try:
        lines = files.read_bytes(path, _LARGEST).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8") from None
    parse = _json if path.suffix.lower() == ".jsonl" else _text
    for number, line in enumerate(lines, 1):
        if not line.strip() or (parse is _text and line.lstrip().startswith("#")):
            continue
        try:
            cues.append(cue_of(parse(line)))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if not cues:
        raise UserError(f"{path} holds no cues: give lines such as `12.0 drums enter`")
    try:
        return check_schedule(cues)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _text(line: str) -> list:
    seconds, *rest = line.split(maxsplit=1)
    try:
        return [float(seconds), rest[0].strip()]
    except (ValueError, IndexError):
        raise UserError(
            f"must be SECONDS and a description, such as `12.0 drums enter`, got {line[:60]!r}"
        ) from None


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"not JSON: {line[:60]!r}") from None
