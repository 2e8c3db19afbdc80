"""Tables that users bring: csv, tsv and jsonl, read within bounds."""

import csv
import gzip
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from musicgen_jax import files
from musicgen_jax.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".jsonl.gz")
_LARGEST = 1 << 28  # bytes


class Row(NamedTuple):
    """One row.

    Attributes:
      line: number of the row's last line in the file, from 1.
      values: by column. Texts in a csv file, any JSON in a jsonl file.
    """

    line: int
    values: dict[str, Any]


def read(path: str | os.PathLike[str]) -> list[Row]:
    """Reads a table, or refuses it.

    Args:
      path: a csv or tsv file with the names of the columns in its first line, or a jsonl file with
        an object in every line. UTF-8. Empty lines do not count.

    Raises:
      UserError: the file cannot be read, is not such a table, or has no rows; the message names the
        first line at fault.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise UserError(f"{path} is not a table: its name must end in {', '.join(SUFFIXES)}")
    data = files.read_bytes(path, _LARGEST)
    if name.endswith(".gz"):
        data = _unpacked(data, path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: save it as UTF-8") from None
    if name.endswith((".csv", ".tsv")):
        rows = _of_csv(text, "\t" if name.endswith(".tsv") else ",", path)
    else:
        rows = _of_jsonl(text, path)
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def column(rows: list[Row], names: tuple[str, ...], path: object, what: str) -> str:
    """The first of some columns that a table has.

    Args:
      rows: of `read`.
      names: in the order of preference.
      path: of the table, for the message.
      what: the content of the column, for the message.

    Raises:
      UserError: it has none of them; the message names those that it has.
    """
    found = rows[0].values
    for name in names:
        if name in found:
            return name
    has = ", ".join(repr(name) for name in list(found)[:10]) or "nothing"
    raise UserError(f"{path} has no column for {what} ({' or '.join(names)}), only {has:.200}")


def _unpacked(data: bytes, path: Path) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            unpacked = stream.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error):
        raise UserError(f"cannot read {path}: not gzip, or cut off") from None
    if len(unpacked) > _LARGEST:
        raise UserError(f"cannot read {path}: larger than {_LARGEST >> 20} MiB when unpacked")
    return unpacked


def _of_csv(text: str, delimiter: str, path: Path) -> list[Row]:
    # newline="": a quoted field may contain line ends of its own.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, header = [], None
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = [field.strip() for field in fields]
                if len(set(header)) < len(header):
                    raise UserError(f"{path}: two columns have the same name")
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, but {len(header)} "
                    "columns"
                )
            rows.append(Row(reader.line_num, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _of_jsonl(text: str, path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: not JSON") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}, line {number}: not a JSON object")
        rows.append(Row(number, values))
    return rows
