"""Descriptions of pieces, from a csv or jsonl file."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

from musicgen_jax import files
from musicgen_jax.config.schema import parse_json
from musicgen_jax.errors import UserError

_LARGEST = 1 << 26  # bytes of the file
_LONGEST = 10_000  # characters of a description
# MusicCaps calls them ytid and caption; the lines of `musicgen-jax batch` call the text prompt.
_ID, _TEXT, _MELODY = ("id", "ytid"), ("text", "caption", "prompt"), ("melody",)


@dataclasses.dataclass(frozen=True)
class Caption:
    """What a piece was asked to be.

    Attributes:
      text: the description, or None.
      melody: an audio file, or None.
    """

    text: str | None
    melody: Path | None


def read(path: Path) -> dict[str, Caption]:
    """Reads the descriptions of pieces.

    Args:
      path: a .csv file with a head line, or a .jsonl file with an object in every line. Columns or
        fields: id (or ytid), text (or caption, prompt), and melody, an audio file relative to
        `path`; text and melody may be empty or missing. Others are not looked at.

    Returns:
      {id: caption}.

    Raises:
      UserError: the file cannot be read, has no ids, or names one twice.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"captions must be in a .csv or .jsonl file, got {str(path)!r}")
    try:
        text = files.read_bytes(path, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"cannot read {path}: not UTF-8") from None
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text)
    found: dict[str, Caption] = {}
    for line, row in rows:
        name = _field(row, _ID, path, line)
        if name is None:
            raise UserError(f"{path}, line {line}: no {' or '.join(_ID)}")
        if name in found:
            raise UserError(f"{path}, line {line}: the id {name!r:.80} is there twice")
        description = _field(row, _TEXT, path, line)
        melody = _field(row, _MELODY, path, line)
        if description and len(description) > _LONGEST:
            raise UserError(f"{path}, line {line}: a text of more than {_LONGEST} characters")
        found[name] = Caption(description, path.parent / melody if melody else None)
    if not found:
        raise UserError(f"{path} holds no captions")
    return found


def _csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    # A csv field may hold line breaks, so the reader counts the lines.
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = reader.fieldnames or ()
        for known in (_ID, _TEXT + _MELODY):
            if not set(known) & set(columns):
                raise UserError(
                    f"{path} has no column {' or '.join(known)}: its columns are "
                    f"{', '.join(str(column) for column in columns)[:200]}"
                )
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None


def _json_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = parse_json(content)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line}: not an object")
        rows.append((line, row))
    return rows


def _field(row: dict[str, Any], names: tuple[str, ...], path: Path, line: int) -> str | None:
    for name in names:
        value = row.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # an id that is a number
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise UserError(f"{path}, line {line}: {name} must be a text")
        if value.strip():
            return value.strip()
    return None
