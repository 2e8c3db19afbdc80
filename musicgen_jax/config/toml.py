"""Settings of a run as a TOML file. A table is a nested dataclass, under the name of its field."""

import dataclasses
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musicgen_jax.config.schema import Config, from_dict
from musicgen_jax.errors import UserError

_MAX_BYTES = 1 << 20  # nobody writes a megabyte of settings by hand


def read(path: str | os.PathLike, config: type[Config]) -> Config:
    """Reads a TOML file into a frozen dataclass, see `schema.from_dict`.

    Raises:
      UserError: the file cannot be read or does not fit; one line names the field.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read settings from {path}: {error.strerror or error}") from None
    if len(data) > _MAX_BYTES:
        raise UserError(f"{path} is too large for a file of settings: over {_MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a file of settings: it is not UTF-8 text") from None
    return parse(text, config, str(path))


def parse(text: str, config: type[Config], where: str = "settings") -> Config:
    """Reads a TOML text, see `read`; every error message begins with `where`."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{where} is not TOML: {error}") from None
    try:
        return from_dict(config, document)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def dump(config: Any) -> str:
    """Writes a dataclass as TOML text; `parse` reads an equal dataclass back."""
    return "\n".join(_lines(config, "")) + "\n"


def _lines(config: Any, name: str) -> Iterator[str]:
    """Plain fields first: after a table's header they would belong to that table."""
    fields = [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    for key, value in fields:
        if value is not None and not _is_table(value):
            yield f"{key} = {_written(value)}"
    for key, value in fields:
        inner = f"{name}.{key}" if name else key
        if dataclasses.is_dataclass(value):
            yield from ("", f"[{inner}]", *_lines(value, inner))
        elif _is_table(value):
            for item in value:
                yield from ("", f"[[{inner}]]", *_lines(item, inner))


def _is_table(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and dataclasses.is_dataclass(value[0])
    return dataclasses.is_dataclass(value)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except for a delete character and surrogates.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
