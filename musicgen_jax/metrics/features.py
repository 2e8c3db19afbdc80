"""The networks' features of clips, cached by content and settings."""

import dataclasses
import hashlib
import io
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from musicgen_jax import audio, files
from musicgen_jax.errors import UserError, printable, reason, user_error
from musicgen_jax.runtime.ahead import cores, map_ahead

_WORKERS = 4  # clips at once at most, so that their memory stays bounded on any machine
_TOGETHER = 1 << 24  # bytes of the files of clips that are measured at once


@dataclasses.dataclass(frozen=True)
class Level:
    """The change of a clip's level before it is measured; `key` names it in the cache."""

    key: str
    apply: Callable[[np.ndarray, int], np.ndarray]


UNCHANGED = Level("as it is", lambda wav, sample_rate: wav)


@dataclasses.dataclass(frozen=True)
class Extractor:
    """One way to describe a clip by numbers.

    Attributes:
      key: identifies the numbers: network, weights and settings. The cache goes by it.
      extract: from float32 [C, W] and a sample rate to an array with a row or more.
      level: how the level is set first.
    """

    key: str
    extract: Callable[[np.ndarray, int], np.ndarray]
    level: Level = UNCHANGED


@dataclasses.dataclass(frozen=True)
class Described:
    """One clip, described.

    Attributes:
      name: its id.
      content: SHA-256 of its file, "" if it cannot be read.
      values: by extractor.
      faults: by extractor, why there is no value.
      fault: why the clip as a whole cannot be used; "" if it can.
    """

    name: str
    content: str
    values: dict[str, np.ndarray]
    faults: dict[str, str]
    fault: str = ""


def describe(
    clips: Mapping[str, Path], extractors: Mapping[str, Extractor], cache: Path | None = None
) -> Iterator[Described]:
    """Describes clips by numbers.

    A clip that cannot be read or measured is reported for that clip alone, and the others continue.
    Several clips are worked on at once, one for each core, because a network alone does not keep
    two cores busy. Each has the same numbers as alone. Large files are worked on one by one.

    Args:
      clips: {id: file}.
      extractors: what to compute, by name.
      cache: a folder for the results, keyed by the content of the file, the extractor's key and its
        level.

    Yields:
      every clip in turn.

    Raises:
      UserError: the cache cannot be written.
    """
    if cache is not None and cache.is_dir():
        files.remove_abandoned(cache)

    def work(clip: tuple[str, Path]) -> Described:
        return _described(*clip, extractors, cache)

    workers = min(cores(), _WORKERS)
    yield from map_ahead(work, clips.items(), workers, lambda clip: _size(clip[1]), _TOGETHER)


def _described(
    name: str, file: Path, extractors: Mapping[str, Extractor], cache: Path | None
) -> Described:
    try:
        content = _digest(file)
    except UserError as error:
        return Described(name, "", {}, {}, printable(str(error)))
    values, faults = {}, {}
    clip: tuple[np.ndarray, int] | None = None
    for key, extractor in extractors.items():
        entry = _entry(cache, _key(content, extractor))
        value = _load(entry)
        if value is None:
            try:
                clip = clip or audio.read(file)
            except UserError as error:
                return Described(name, content, {}, {}, printable(str(error)))
            try:
                value = extractor.extract(extractor.level.apply(*clip), clip[1])
                if not len(value):
                    raise UserError(f"{clip[0].shape[1] / clip[1]:.2f} s are too short")
                if not np.isfinite(value).all():
                    raise UserError("the network computed values for it that are not finite")
            except (UserError, RuntimeError, MemoryError) as error:
                # RuntimeError: also what XLA raises if a long clip does not fit into the memory.
                faults[key] = printable(reason(error))
                continue
            _store(entry, value)
        values[key] = value
    return Described(name, content, values, faults)


def uncached(
    clips: Mapping[str, Path], extractors: Mapping[str, Extractor], cache: Path
) -> Iterator[str]:
    """The clips that can be read and of which the cache lacks something."""
    for name, file in clips.items():
        try:
            content = _digest(file)
        except UserError:
            continue
        entries = (_entry(cache, _key(content, extractor)) for extractor in extractors.values())
        if any(_load(entry) is None for entry in entries):
            yield name


def cached(cache: Path | None, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The result of `compute`, from the cache if it is there.

    Raises:
      UserError: the cache cannot be written.
    """
    entry = _entry(cache, key)
    value = _load(entry)
    if value is None:
        value = compute()
        _store(entry, value)
    return value


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # `_digest` says what is wrong
        return 0


def _digest(file: Path) -> str:
    with user_error("read", file):
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait forever
            raise UserError(f"cannot read {file}: not a file")
    with user_error("read", file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _key(content: str, extractor: Extractor) -> str:
    return "\n".join((content, extractor.level.key, extractor.key))


def _entry(cache: Path | None, key: str) -> Path | None:
    return None if cache is None else cache / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"


def _load(entry: Path | None) -> np.ndarray | None:
    """A cached array; None if there is none or it is damaged."""
    try:
        return None if entry is None else np.load(entry, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _store(entry: Path | None, value: np.ndarray) -> None:
    if entry is not None:
        stream = io.BytesIO()
        np.save(stream, value)
        files.write_bytes(entry, stream.getvalue())
