"""The requests for the pieces of a study: descriptions and melodies, from a table."""

import dataclasses
from pathlib import Path

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import tables
from musicgen_jax.metrics.captions import CAPTIONS, IDS, clip_id
from musicgen_jax.metrics.tables import Row

_MELODIES = ("melody",)
_LONGEST = 10_000  # characters of a description


@dataclasses.dataclass(frozen=True)
class Caption:
    """The request for a piece.

    Attributes:
      text: the description, or None.
      melody: an audio file, or None.
    """

    text: str | None
    melody: Path | None


def read(path: Path) -> dict[str, Caption]:
    """Reads the requests for the pieces.

    `evaluate` reads the same tables, but ignores melodies and needs a text in every row.

    Args:
      path: a table with an id in every row, and with a text, with a melody or with both, which
        single rows may leave empty. A melody is an audio file, relative to the table.

    Returns:
      {id: caption}.

    Raises:
      UserError: the file cannot be read, a column is missing, or an id is missing or appears twice.
    """
    rows = tables.read(path)
    ids = tables.column(rows, IDS, path, "the id")
    texts, melodies = _column(rows, CAPTIONS), _column(rows, _MELODIES)
    if texts is None and melodies is None:
        tables.column(rows, CAPTIONS + _MELODIES, path, "the text or the melody")
    found: dict[str, Caption] = {}
    for row in rows:
        where = f"{path}, line {row.line}"
        name = clip_id(row.values.get(ids), ids)
        if not name:
            raise UserError(f"{where}: the id is missing")
        if name in found:
            raise UserError(f"{where}: the id {name!r:.80} appears twice")
        text, melody = _cell(row, texts, where), _cell(row, melodies, where)
        found[name] = Caption(text, path.parent / melody if melody is not None else None)
    return found


def _column(rows: list[Row], names: tuple[str, ...]) -> str | None:
    """The first of some columns that any row has: objects in a jsonl file may differ."""
    return next((name for name in names if any(name in row.values for row in rows)), None)


def _cell(row: Row, column: str | None, where: str) -> str | None:
    value = row.values.get(column) if column is not None else None
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(f"{where}: {column} must be a text")
    if len(value) > _LONGEST:
        raise UserError(f"{where}: {column} has more than {_LONGEST} characters")
    if "\0" in value:
        raise UserError(f"{where}: {column} has a null character")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise UserError(f"{where}: {column} is not valid Unicode") from None
    return value.strip() or None
