"""Frozen dataclasses to plain values and back: the one reader of configs, settings and indices.

The input may come from anywhere. Names, types, ranges and sizes are checked, and a message names
the field by its path, as in `lm.delays[2] must be a whole number, got 'x'`.

A dataclass may have fields of bool, int, float, str, tuples, other dataclasses, and `X | None`.
`Annotated[int, Between(1, 10)]` limits a number; on a text or a tuple it limits the length.
"""

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from typing import Annotated, Any, TypeVar

Config = TypeVar("Config")

_MAX_INTEGER = 1 << 63  # of a field without a range of its own
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Between:
    """The range of a number, or of the length of a text or tuple; None: no upper end."""

    lowest: float
    highest: float | None = None

    def __contains__(self, number: float) -> bool:
        return self.lowest <= number and (self.highest is None or number <= self.highest)

    def __str__(self) -> str:
        if self.highest is None:
            return f"at least {self.lowest:.15g}"
        return f"from {self.lowest:.15g} to {self.highest:.15g}"


Positive = Annotated[int, Between(1)]
Natural = Annotated[int, Between(0)]
Share = Annotated[float, Between(0, 1)]
# A size in an architecture; nothing real comes near the upper end.
Size = Annotated[int, Between(1, 10**7)]
SizeOrNone = Annotated[int, Between(0, 10**7)]  # 0: the part is absent
Seconds = Annotated[float, Between(1e-4, 24 * 3600)]
Factor = Annotated[float, Between(0, 10**6)]


def to_dict(config: Any) -> dict:
    """A dataclass as plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(config: type[Config], values: Any, where: str = "") -> Config:
    """Builds a dataclass from plain JSON or TOML types.

    Args:
      config: the dataclass.
      values: a dict of its fields; a field with a default may be absent.
      where: path of the values, which begins the name of every field in a message.

    Raises:
      ValueError: a field is unknown, missing, of the wrong type or out of range; or the dataclass
        refuses the values. The message is one line.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'this'} must be an object with fields, got {_shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name[:100], fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(fields)}"
            shown = repr(_path(where, name))[1:-1][:100]  # it may hold line breaks
            raise ValueError(f"unknown field {shown}: {hint}")
    hints = _hints(config)
    given = {}
    for name, field in fields.items():
        if name in values:
            given[name] = _value(hints[name], values[name], _path(where, name))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"field {_path(where, name)} is missing")
    try:
        return config(**given)
    except ValueError as error:  # of __post_init__
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def check_ranges(config: Any) -> None:
    """Checks the ranges of a dataclass's own fields, for `__post_init__`.

    Raises:
      ValueError: a number, or the length of a text or tuple, is out of range.
    """
    for name, hint in _hints(type(config)).items():
        _check_range(hint, getattr(config, name), name)


def parse_json(data: bytes | str) -> Any:
    """Plain values of JSON text from outside.

    Raises:
      ValueError: it is not JSON, not UTF-8 or nested too deeply. The message is one line.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config, include_extras=True)


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)


def _without_none(hint: Any) -> tuple[Any, bool]:
    """X of `X | None`, and whether there is a None; no other union is in use."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        return hint, True
    return hint, False


def _value(hint: Any, value: Any, path: str) -> Any:
    hint, optional = _without_none(hint)
    if optional and value is None:
        return None
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, path)  # type: ignore[arg-type]
    if typing.get_origin(kind) is tuple:
        made: Any = _tuple(typing.get_args(kind), value, path)
    else:
        made = _scalar(kind, value, path)
    _check_range(hint, made, path)
    return made


def _tuple(items: tuple, value: Any, path: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path} must be a list, got {_shown(value)}")
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    if len(items) != len(value):
        raise ValueError(f"{path} must be a list of {len(items)}, got {len(value)}")
    return tuple(
        _value(item, one, f"{path}[{i}]")
        for i, (item, one) in enumerate(zip(items, value, strict=True))
    )


def _scalar(kind: type, value: Any, path: str) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = whole if kind is int else isinstance(value, kind) or (kind is float and whole)
    if not fits:
        raise ValueError(f"{path} must be {_KINDS[kind]}, got {_shown(value)}")
    if whole and not -_MAX_INTEGER <= value <= _MAX_INTEGER:
        raise ValueError(f"{path} is too large, got {_shown(value)}")
    if kind is float:
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"{path} must be a finite number, got {value}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
            raise ValueError(f"{path} is not valid Unicode") from None
    return value


def _check_range(hint: Any, value: Any, path: str) -> None:
    hint, _ = _without_none(hint)
    if value is None:
        return
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        items = items[:1] * len(value) if items[-1] is Ellipsis else items
        for i, (item, one) in enumerate(zip(items, value, strict=True)):
            _check_range(item, one, f"{path}[{i}]")
    if typing.get_origin(hint) is not Annotated:
        return
    kind, limits = typing.get_args(hint)
    _check_range(kind, value, path)
    if isinstance(value, str | tuple):
        if len(value) not in limits:
            unit = "characters" if isinstance(value, str) else "items"
            raise ValueError(f"{path} must have {limits} {unit}, got {len(value)}")
    elif value not in limits:
        raise ValueError(f"{path} must be {limits}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """A value in a message: short and on one line, whatever it is."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 64:  # Python refuses to print very long ones
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
