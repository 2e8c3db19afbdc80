"""Settings of a run: a TOML file to frozen dataclasses and back. No jax here.

A field is a table, its name that of the dataclass's field. What a file leaves out keeps its
default; what the dataclass does not know is an error, since a misspelt setting that is silently
ignored costs a run.
"""

import dataclasses
import difflib
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from musicgen_jax.errors import UserError

Config = TypeVar("Config")

_MAX_BYTES = 1 << 20  # nobody writes a megabyte of settings by hand


def read(path: str | os.PathLike, config: type[Config]) -> Config:
    """Reads a TOML file into a frozen dataclass.

    Args:
      path: the file.
      config: a dataclass of bool, int, float, str, tuples and dataclasses of these, `X | None`
        where a value may be left out.

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
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a file of settings: it is not UTF-8 text") from None
    return parse(text, config, str(path))


def parse(text: str, config: type[Config], where: str = "settings") -> Config:
    """Settings of a TOML text, see `read`; `where` begins the message of every error."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not TOML: {error}") from None
    return _build(config, document, where, "")


def dump(config: Any) -> str:
    """A dataclass as the TOML text that `parse` reads back as an equal one."""
    return "\n".join(_lines(config, "")) + "\n"


# --- Reading -----------------------------------------------------------------------------------


def _build(config: type, values: Any, where: str, name: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}: {name} must be a table, got {_shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(config)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(fields)}"
            raise UserError(f"{where}: unknown setting {_join(name, key)}: {hint}")
    hints = typing.get_type_hints(config)
    given = {}
    for key, field in fields.items():
        if key in values:
            given[key] = _value(hints[key], values[key], where, _join(name, key))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: setting {_join(name, key)} is missing")
    try:
        return config(**given)
    except ValueError as error:  # of __post_init__
        raise UserError(f"{where}: {name + ': ' if name else ''}{error}") from None


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    if isinstance(hint, types.UnionType):  # `X | None`: TOML has no null, absence stands for it
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, name)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where}: {name} must be a list, got {_shown(value)}")
        item = typing.get_args(hint)[0]
        return tuple(_value(item, v, where, f"{name}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        kind = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise UserError(f"{where}: {name} must be {kind[hint]}, got {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {name} must be a finite number, got {value}")
    return value


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- Writing -----------------------------------------------------------------------------------


def _lines(config: Any, name: str) -> Iterator[str]:
    """Plain fields first: in TOML they would belong to whatever table stands above them."""
    fields = [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    for key, value in fields:
        if value is not None and not _is_table(value):
            yield f"{key} = {_written(value)}"
    for key, value in fields:
        inner = _join(name, key)
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
        # JSON's escapes are TOML's, but for a delete character and surrogates.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
