"""Finds audio files in a folder or in a manifest as audiocraft writes it.

An unusable file is reported once, counted and skipped. It is an error only if no file is left or if
the manifest itself is broken.
"""

import dataclasses
import gzip
import logging
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_jax import audio
from musicgen_jax.config.schema import parse_json
from musicgen_jax.errors import UserError, printable
from musicgen_jax.training.data.metadata import check_text

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
# Audio formats that libsndfile cannot read.
UNREADABLE = (
    *(".m4a", ".m4b", ".mp4", ".aac", ".ac3", ".alac", ".amr", ".ape", ".dsf", ".dts"),
    *(".mka", ".mov", ".mpc", ".ra", ".tta", ".webm", ".wma", ".wv"),
)
MANIFESTS = ("data.jsonl", "data.jsonl.gz")  # the names that audiocraft looks for in a folder
MAX_LINE = 1 << 16  # bytes of a manifest's line
MAX_FILES = 10_000_000
MAX_DURATION = 7 * 86400.0  # seconds
_READERS = 8  # threads that read headers; they mostly wait for the disk


@dataclasses.dataclass(frozen=True)
class AudioMeta:
    """An audio file to draw from.

    Attributes:
      path: name of the file in the folder or the manifest.
      file: path of the file on disk.
      duration: in seconds.
      sample_rate: in Hz.
      weight: relative frequency of drawing the file; None counts as 1.
    """

    path: str
    file: Path
    duration: float
    sample_rate: int
    weight: float | None = None


class Skipped:
    """The unusable files; each is logged once."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}  # path -> reason, in the order of discovery

    def __contains__(self, path: str) -> bool:
        return path in self.names

    def __len__(self) -> int:
        return len(self.names)

    def add(self, path: str, reason: Exception) -> None:
        """Adds a file; logs the reason if the file is new."""
        if path not in self.names:
            line = self.names[path] = printable(" ".join(str(reason).split()))
            logging.getLogger("musicgen_jax").warning("skipped: %s", line)


def find(source: str | os.PathLike, skipped: Skipped) -> list[AudioMeta]:
    """The audio files of a folder or a manifest.

    A folder is searched recursively, except for names that begin with a dot, and its files are
    sorted by name. A folder that contains `data.jsonl` or `data.jsonl.gz` stands for that manifest.
    The files of a manifest keep its order, and this function does not open them.

    Args:
      source: a folder or a manifest. A manifest is a `.jsonl` or `.jsonl.gz` file with one object
        per line: path, duration, sample_rate and optionally amplitude, weight and info_path. Paths
        are relative to the folder of the manifest or, as in audiocraft, to the current folder.
      skipped: receives the unusable files.

    Raises:
      UserError: the source does not exist, it contains no audio or only unreadable audio, or the
        manifest is broken.
    """
    source = Path(source)
    manifest = next((source / name for name in MANIFESTS if (source / name).is_file()), source)
    if manifest.is_file():
        return _of_manifest(manifest)
    if not source.is_dir():
        raise UserError(f"no folder of audio and no manifest at {source}")
    names = sorted(_names(source, SUFFIXES + UNREADABLE))
    if not names:
        raise UserError(f"no audio in {source}: files must end in {', '.join(SUFFIXES)}")

    def look(name: str) -> AudioMeta | UserError:
        if name.lower().endswith(UNREADABLE):
            kind = Path(name).suffix
            return UserError(f"cannot read {source / name}: convert {kind} files to .wav or .flac")
        try:
            name.encode()
            found = audio.info(source / name)
            return AudioMeta(name, source / name, found.duration, found.sample_rate)
        except UnicodeEncodeError:  # codes are stored under this name
            return UserError(f"cannot use {source / name}: its name is not UTF-8, rename it")
        except UserError as error:
            return error

    metas = []
    with ThreadPoolExecutor(_READERS) as pool:
        for name, meta in zip(names, pool.map(look, names), strict=True):
            if isinstance(meta, UserError):
                skipped.add(name, meta)
            else:
                metas.append(meta)
    if not metas:
        first = skipped.names[names[0]]
        raise UserError(
            f"none of the {len(names)} audio files in {source} can be read; the first: {first}"
        )
    return metas


def read_audio(
    meta: AudioMeta,
    sample_rate: int,
    channels: int,
    *,
    start: float = 0.0,
    seconds: float | None = None,
) -> np.ndarray:
    """Reads a file, or part of it, and converts it: float32 [C, W].

    Args:
      meta: the file.
      sample_rate: of the result, in Hz.
      channels: C of the result.
      start: where to start reading, in seconds.
      seconds: length of the part (default: up to the end of the file).

    Raises:
      UserError: the file cannot be read, or would be too large at that rate.
    """
    wav, rate = audio.read(meta.file, start=start, seconds=seconds)
    try:
        return audio.convert_audio(wav, rate, sample_rate, channels)
    except UserError as error:
        raise UserError(f"cannot use {meta.file}: {error}") from None


def _names(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Files below a folder, relative to it. It visits each folder once, so link cycles end."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _of_manifest(manifest: Path) -> list[AudioMeta]:
    if not manifest.name.lower().endswith((".jsonl", ".jsonl.gz")):
        raise UserError(
            f"{manifest} is neither a folder of audio nor a manifest (.jsonl or .jsonl.gz): put "
            "audio files into a folder and name that"
        )
    metas: list[AudioMeta] = []
    number = 0
    try:
        compressed = manifest.name.lower().endswith(".gz")
        with gzip.open(manifest, "rb") if compressed else manifest.open("rb") as lines:
            while line := lines.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise ValueError(f"longer than {MAX_LINE} bytes")
                if number > MAX_FILES:
                    raise ValueError(f"at most {MAX_FILES} lines fit")
                if line.strip():
                    metas.append(_of_line(parse_json(line), manifest.parent))
    except (zlib.error, EOFError, gzip.BadGzipFile):
        raise UserError(f"cannot read {manifest}: not gzip, or cut off") from None
    except OSError as error:
        raise UserError(f"cannot read {manifest}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{manifest}, line {number}: {error}") from None
    if not metas:
        raise UserError(f"{manifest} names no audio")
    return metas


def _of_line(values: Any, folder: Path) -> AudioMeta:
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    path, weight = values.get("path"), values.get("weight")
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError("path must be a text")
    check_text("path", path)
    duration = _number("duration", values.get("duration"), MAX_DURATION)
    sample_rate = _number("sample_rate", values.get("sample_rate"), 1e7)
    if not duration or sample_rate < 1:
        raise ValueError("duration and sample_rate must be above 0")
    if weight is not None:
        weight = _number("weight", weight, 1e12)
    beside = folder / path
    file = beside if beside.exists() else Path(path)
    return AudioMeta(path, file, duration, int(sample_rate), weight)


def _number(name: str, value: Any, largest: float) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 <= value <= largest:  # also rejects NaN
        raise ValueError(f"{name} must be a number from 0 to {largest:g}")
    return float(value)
