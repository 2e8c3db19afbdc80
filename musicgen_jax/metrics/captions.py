"""Captions by the ids of their clips, from MusicCaps' file as published and from plain tables."""

import os
from pathlib import PurePosixPath

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import tables

IDS = ("ytid", "id", "name", "file", "path")  # the last two name a file: its id is without suffix
CAPTIONS = ("caption", "description", "prompt", "text")
_LONGEST = 10_000  # characters


def read(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads captions, or refuses the file.

    Args:
      path: a csv, tsv or jsonl file with a column for the id and one for the caption. MusicCaps'
        `musiccaps-public.csv` is one: its columns are `ytid` and `caption`, among others.

    Returns:
      {id: caption}, in the order of the file.

    Raises:
      UserError: the file cannot be read, a column is missing, an id is missing or appears twice, or
        a caption is missing; the message names the first line at fault.
    """
    rows = tables.read(path)
    ids = tables.column(rows, IDS, path, "the id")
    captions = tables.column(rows, CAPTIONS, path, "the caption")
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, values in rows:
        name = clip_id(values.get(ids), ids)
        caption = values.get(captions)
        if not name:
            raise UserError(f"{path}, line {line}: the id is missing")
        if name in found:
            raise UserError(
                f"{path}, line {line}: the id {name!r:.80} is in line {lines[name]}, too"
            )
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(f"{path}, line {line}: {name!r:.80} has no caption")
        if len(caption) > _LONGEST:
            raise UserError(
                f"{path}, line {line}: {len(caption)} characters; a caption may have at most "
                f"{_LONGEST}"
            )
        try:
            f"{name}{caption}".encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON lets through
            raise UserError(f"{path}, line {line}: it contains half of a character") from None
        found[name], lines[name] = caption.strip(), line
    return found


def clip_id(value: object, column: str) -> str:
    """The id in a cell, "" if there is none; a name of a file loses its suffix."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return ""
    value = value.strip()
    if column in ("file", "path") and value:
        return PurePosixPath(value).with_suffix("").as_posix()
    return value
