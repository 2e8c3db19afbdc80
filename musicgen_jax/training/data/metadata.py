"""What is known of a piece of music: audiocraft's JSON file beside the audio.

Fields, and what counts as no value, are those of audiocraft's `MusicInfo.from_dict` (data/
music_dataset.py), so that the same files give the same prompts. Such a file comes from outside: its
size and its types are checked.
"""

import dataclasses
import math
import re
import stat
from pathlib import Path
from typing import Annotated, Any

from musicgen_jax.config.schema import Between, parse_json

MAX_BYTES = 1 << 20  # of a file
MAX_TEXT = 4096  # characters of a text
MAX_LIST = 256  # texts of a list
Text = Annotated[str, Between(0, MAX_TEXT)]
Texts = Annotated[tuple[Text, ...], Between(0, MAX_LIST)]


@dataclasses.dataclass(frozen=True)
class MusicInfo:
    """Metadata of a piece; None where it has none."""

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
        """Takes the known fields out of a JSON object; others may stand beside them.

        Raises:
          ValueError: it is no object, or a field is of a wrong type, too long or no Unicode.
        """
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        fields = {}
        for name, parse in _PARSERS.items():
            value = values.get(name)
            _check(name, value)
            fields[name] = parse(value)
        if fields["description"] is None:  # a name that other tools write
            _check("caption", values.get("caption"))
            fields["description"] = _text(values.get("caption"))
        return cls(**fields)

    @property
    def is_bare(self) -> bool:
        """Whether nothing is known that a prompt could say."""
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
    """The metadata of an audio file: NAME.json next to NAME.wav; its description, also NAME.txt.

    Raises:
      ValueError: there is a file, but it cannot be read or holds something else; one line says
        which and why.
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
    """A file of bounded size, None if there is none."""
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
    """A text must be short, and Unicode: the tokenizer takes nothing else."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"{name} is longer than {MAX_TEXT} characters")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
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
    """Several keys are as good as none."""
    return None if isinstance(value, str) and "," in value else _keyword(value)


def _keywords(value: Any) -> tuple[str, ...] | None:
    """A text is a list whose values commas or spaces part."""
    if isinstance(value, str):
        value = [part.strip() for part in re.split(r"[,\s]", value)]
    elif isinstance(value, float) and math.isnan(value):  # pandas writes an empty cell so
        value = []
    elif not isinstance(value, list):
        value = [str(value)]
    keywords = (_keyword(one) for one in value)
    return tuple(one for one in keywords if one is not None) or None


def _bpm(value: Any) -> float | None:
    """Unlike audiocraft's, a NaN is no tempo: its prompt would say "bpm: nan"."""
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
