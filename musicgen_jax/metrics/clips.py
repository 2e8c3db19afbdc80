"""Folders of clips, and the numbers that describe each clip, cached by content."""

import dataclasses
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from musicgen_jax import audio
from musicgen_jax.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")


def find_clips(folder: str | os.PathLike) -> dict[str, Path]:
    """The audio files of a folder and of the folders in it; hidden ones are left out.

    Returns:
      {id: file}, sorted: the id is the path inside the folder without its suffix.

    Raises:
      UserError: there is no such folder, it holds no audio, or two files have one id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    clips: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or file.suffix.lower() not in SUFFIXES or not file.is_file():
            continue
        name = inside.with_suffix("").as_posix()
        if name in clips:
            raise UserError(f"{clips[name]} and {file} have the same name: keep one of them")
        clips[name] = file
    if not clips:
        raise UserError(f"{folder} contains no audio files ({', '.join(SUFFIXES)})")
    return clips


@dataclasses.dataclass(frozen=True)
class Extractor:
    """One way to describe a clip by numbers.

    Attributes:
      key: identifies the numbers: network, weights and settings. The cache goes by it.
      extract: from float32 [C, W] and a sample rate to an array.
    """

    key: str
    extract: Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Level:
    """What happens to a clip's level before it is measured; `key` names it in the cache."""

    key: str
    apply: Callable[[np.ndarray, int], np.ndarray]


UNCHANGED = Level("as it is", lambda wav, sample_rate: wav)


def features(
    clips: Mapping[str, Path],
    extractors: Mapping[str, Extractor],
    level: Level,
    skipped: dict[str, str],
    cache: Path | None = None,
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Describes clips by numbers, one clip after the other.

    Args:
      clips: {id: file}.
      extractors: what to compute.
      level: sets the level of a clip first.
      skipped: is filled with {id: reason} for clips that cannot be read or measured.
      cache: a folder for what was computed, by the content of the file and the extractor's key.

    Yields:
      id and {name of the extractor: array}.

    Raises:
      UserError: not a single clip could be measured; the message has the first reason.
    """
    for name, file in clips.items():
        try:
            found = _features(file, extractors, level, cache)
        except UserError as error:
            skipped[name] = str(error)
        else:
            yield name, found
    if clips.keys() <= skipped.keys():
        first = next(iter(clips))
        raise UserError(f"none of {len(clips)} clips could be measured: {skipped[first]}")


def _features(
    file: Path, extractors: Mapping[str, Extractor], level: Level, cache: Path | None
) -> dict[str, np.ndarray]:
    content = _digest(file) if cache else ""
    found, clip = {}, None
    for name, extractor in extractors.items():
        entry = None
        if cache:
            key = hashlib.sha256("\n".join((content, level.key, extractor.key)).encode())
            entry = cache / f"{key.hexdigest()}.npy"
        value = _load(entry)
        if value is None:
            if clip is None:
                wav, rate = audio.read(file)
                clip = level.apply(wav, rate), rate
            value = extractor.extract(*clip)
            _store(entry, value)
        found[name] = value
    return found


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _load(entry: Path | None) -> np.ndarray | None:
    """A cached array; None if there is none or it is damaged."""
    try:
        return None if entry is None else np.load(entry, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _store(entry: Path | None, value: np.ndarray) -> None:
    if entry is None:
        return
    temporary = entry.with_name(f".{secrets.token_hex(8)}.part")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                np.save(stream, value)
            os.replace(temporary, entry)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # Not a fault of the clip, which would be skipped.
        raise RuntimeError(f"cannot write {entry}: {error.strerror}") from error
