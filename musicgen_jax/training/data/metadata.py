"""Metadata of a piece of music: audiocraft's JSON file next to the audio.

The fields and the rules for missing values are those of audiocraft's `MusicInfo.from_dict`
(data/music_dataset.py), so the same files give the same prompts. These files are untrusted, so this
module checks their size and their types.
"""

import dataclasses
import math
import re
import stat
from pathlib import Path
from typing import Annotated, Any

from musicgen_jax.config.schema import Between, parse_json

MAX_BYTES = 1 << 20  # size of a file
MAX_TEXT = 4096  # characters per text
MAX_LIST = 256  # texts per list
Text = Annotated[str, Between(0, MAX_TEXT)]
Texts = Annotated[tuple[Text, ...], Between(0, MAX_LIST)]


@dataclasses.dataclass(frozen=True)
class MusicInfo:
    """Metadata of a piece; a missing field is None."""

    title: Text | None = None
    artist: Text | None = None
    key: Text | None = None
    bpm: float | None = None
    genre: Text | None = None
    moods: Texts | None = None
    keywords: Texts | None = None
    description: Text | None = None
    name: Text | None = None
    instrument: Text | None = None

    @classmethod
    def from_dict(cls, values: Any) -> "MusicInfo":
        """Reads the known fields of a JSON object and ignores others.

        Raises:
          ValueError: `values` is not an object, or a field has a wrong type, is too long or is not
            valid Unicode.
        """
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        fields = {}
        for name, parse in _PARSERS.items():
            value = values.get(name)
            _check(name, value)
            fields[name] = parse(value)
        if fields["description"] is None:  # the name that other tools use
            _check("caption", values.get("caption"))
            fields["description"] = _text(values.get("caption"))
        return cls(**fields)

    @property
    def is_bare(self) -> bool:
        """Whether it has no field that a prompt could use."""
        said = (self.description, self.key, self.bpm, self.genre, self.moods, self.keywords)
        return not any((*said, self.instrument))

    def to_dict(self) -> dict:
        """The fields that have a value, as plain JSON types."""
        values = {name: getattr(self, name) for name in _PARSERS}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }


def read(audio: Path) -> MusicInfo:
    """Reads the metadata of NAME.wav from NAME.json, and the description also from NAME.txt.

    Raises:
      ValueError: a metadata file exists, but it cannot be read or is invalid. The message, a single
        line, names the file and the reason.
    """
    file = audio.with_suffix(".json")
    data = _contents(file)
    try:
        info = MusicInfo() if data is None else MusicInfo.from_dict(parse_json(data))
        if info.description is not None:
            return info
        file = audio.with_suffix(".txt")
        data = _contents(file)
        text = None if data is None else " ".join(data.decode().split())
        _check("its text", text)
    except UnicodeDecodeError:
        raise ValueError(f"cannot use {file}: not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"cannot use {file}: {error}") from None
    return dataclasses.replace(info, description=text or None)


def _contents(path: Path) -> bytes | None:
    """Reads a file of bounded size; None if it does not exist."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"cannot use {path}: not a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"cannot use {path}: larger than {MAX_BYTES} bytes")
    return data


def check_text(name: str, text: str) -> None:
    """Checks that a text is short and valid Unicode, as the tokenizer requires."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"{name} is longer than {MAX_TEXT} characters")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can encode half of a surrogate pair
        raise ValueError(f"{name} is not valid Unicode") from None


def _check(name: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    if len(values) > MAX_LIST:
        raise ValueError(f"{name} lists more than {MAX_LIST} values")
    for one in values:
        if isinstance(one, str):
            check_text(name, one)
        elif one is not None and (isinstance(one, bool) or not isinstance(one, int | float)):
            raise ValueError(f"{name} must be a text, a number or a list of them")


def _text(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) and value not in ("", "None") else None


def _keyword(value: Any) -> str | None:
    text = _text(value)
    return None if text is None else text.lower()


def _key(value: Any) -> str | None:
    """A list of several keys counts as no key."""
    return None if isinstance(value, str) and "," in value else _keyword(value)


def _keywords(value: Any) -> tuple[str, ...] | None:
    """Parses a list of keywords; a text is split at commas and spaces."""
    if isinstance(value, str):
        value = [part.strip() for part in re.split(r"[,\s]", value)]
    elif isinstance(value, float) and math.isnan(value):  # pandas writes an empty cell as NaN
        value = []
    elif not isinstance(value, list):
        value = [str(value)]
    keywords = (_keyword(one) for one in value)
    return tuple(one for one in keywords if one is not None) or None


def _bpm(value: Any) -> float | None:
    """Parses a tempo. Unlike audiocraft, it rejects NaN, which would put "bpm: nan" in prompts."""
    if value is None or isinstance(value, list):
        return None
    try:
        bpm = float(value)
    except (ValueError, OverflowError):
        return None
    return bpm if math.isfinite(bpm) else None


_PARSERS = {
    "title": _text,
    "artist": _text,
    "key": _key,
    "bpm": _bpm,
    "genre": _keyword,
    "moods": _keywords,
    "keywords": _keywords,
    "description": _text,
    "name": _keyword,
    "instrument": _keyword,
}
