"""Writes shards of codes, so that a killed process loses at most one shard."""

import dataclasses
import hashlib
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from musicgen_jax import files
from musicgen_jax.config.schema import parse_json
from musicgen_jax.errors import UserError, printable, user_error
from musicgen_jax.training.data import metadata, shards
from musicgen_jax.training.data.shards import CodeClip
from musicgen_jax.training.data.sources import AudioMeta, Skipped

_LARGEST_LIST = shards.MAX_JSON // 4  # bytes; a single clip needs less than another quarter
_DTYPES = {"codes": np.int16, "chroma": np.uint8, "style": np.uint16}
_BYTES = {"codes": "bytes", "chroma": "chroma_bytes", "style": "style_bytes"}  # in the index


class ShardWriter:
    """Writes the folder that `CodeShards` opens.

    Args:
      folder: a new folder, or one with the same settings to resume.
      settings: of the codes, as plain JSON types.
      frames: size at which a shard is written.
      log: receives a line for every shard.

    Raises:
      UserError: the folder holds unrelated files or codes with other settings, or cannot be read
        or written.
    """

    def __init__(
        self, folder: Path, settings: dict, frames: int, log: Callable[[str], None]
    ) -> None:
        self.folder, self.settings, self.frames, self.log = folder, settings, frames, log
        self._shards: list[dict] = []
        self._finished: dict[str, CodeClip] = {}
        also = {"chroma_bins": "chroma", "style_books": "style"}
        kinds = ["codes", *(kind for name, kind in also.items() if name in settings)]
        self._rows: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
        self._clips: list[CodeClip] = []
        self._size = self._listed = 0  # frames and bytes of JSON in the current shard
        with user_error("write", folder):
            if (folder / shards.SETTINGS).exists():
                self._go_on()
            elif folder.exists() and any(folder.iterdir()):
                raise UserError(f"{folder} holds something else: choose a new folder")
            else:
                self._write(shards.SETTINGS, _json(settings))

    def without_finished(self, metas: list[AudioMeta]) -> list[AudioMeta]:
        """The files that are not encoded yet.

        Raises:
          UserError: a file that is already encoded has changed or is missing.
        """
        known = {meta.path: meta for meta in metas}
        changed = [path for path, clip in self._finished.items() if not _same(clip, known)]
        if changed:
            raise UserError(
                f"{len(changed)} audio files or their metadata changed since they were encoded "
                f"into {self.folder}, the first is {changed[0]}: encode into a new folder"
            )
        return [meta for meta in known.values() if meta.path not in self._finished]

    def add(
        self,
        clip: CodeClip,
        codes: np.ndarray,
        chroma: np.ndarray | None = None,
        style: np.ndarray | None = None,
    ) -> None:
        """Adds a clip to the current shard.

        Args:
          clip: the clip; its `start` is set here.
          codes: [K, T].
          chroma: uint8 [T, places], if the settings include chroma.
          style: uint16 [N, books, P], if the settings include styles.
        """
        clip = dataclasses.replace(clip, start=self._size)
        for kind, rows in (("codes", codes.T), ("chroma", chroma), ("style", style)):
            if rows is not None:
                self._rows[kind].append(rows)
        self._clips.append(clip)
        self._size += codes.shape[1]
        self._listed += len(_json(clip.to_dict())) + 2
        if self._size >= self.frames or self._listed >= _LARGEST_LIST:
            self._flush()

    def finish(self, silence: list[int], skipped: Skipped) -> None:
        """Writes the last shard and the index.

        Args:
          silence: the code of silence in each codebook.
          skipped: the files that could not be encoded.

        Raises:
          UserError: there are no clips.
        """
        if self._clips:
            self._flush()
        if not self._shards:
            raise UserError(f"every one of the {len(skipped)} audio files is broken")
        index = {
            **self.settings,
            "silence": silence,
            "skipped": len(skipped),
            "skipped_first": [printable(name) for name in skipped.names][:100],
            "shards": self._shards,
        }
        self._write(shards.INDEX, _json(index, indent=1))

    def _go_on(self) -> None:
        path = self.folder / shards.SETTINGS
        data = shards.read_file(path)
        try:
            found = parse_json(data)
            shards.check_format(found)
        except ValueError as error:
            raise UserError(f"cannot continue from {path}: {error}") from None
        for name in {**found, **self.settings}:
            was, now = found.get(name), self.settings.get(name)
            if was != now:
                raise UserError(
                    f"{self.folder} was encoded with {name} {was!r}, not {now!r}: "
                    "encode into a new folder"
                )
        files.remove_abandoned(self.folder)
        for number in itertools.count():
            path = self.folder / shards.clips_name(number)
            if not path.exists():
                break
            data = shards.read_file(path)
            sizes = {
                kind: (self.folder / shards.array_name(kind, number)).stat().st_size
                for kind in self._rows
            }
            self._note(shards.read_clips(data, path), data, sizes)

    def _flush(self) -> None:
        number = len(self._shards)
        arrays = {kind: _npy(rows, _DTYPES[kind]) for kind, rows in self._rows.items()}
        digests = {f"{n}_sha256": hashlib.sha256(d).hexdigest() for n, d in arrays.items()}
        clips = [clip.to_dict() for clip in self._clips]
        listed = _json({**digests, "clips": clips}, indent=0)
        for kind, data in arrays.items():
            self._write(shards.array_name(kind, number), data)
        self._write(shards.clips_name(number), listed)  # last: this file completes the shard
        self._note(self._clips, listed, {kind: len(data) for kind, data in arrays.items()})
        hours = sum(clip.frames for clip in self._clips) * self.settings["hop_length"]
        hours /= self.settings["sample_rate"] * 3600
        self.log(f"{shards.array_name('codes', number)}: {len(self._clips)} clips, {hours:.2f} h")
        self._rows = {kind: [] for kind in self._rows}
        self._clips, self._size, self._listed = [], 0, 0

    def _note(self, clips: list[CodeClip], listed: bytes, sizes: dict[str, int]) -> None:
        """Adds a shard to the index."""
        self._finished |= {clip.path: clip for clip in clips}
        self._shards.append(
            {
                "clips": len(clips),
                "frames": clips[-1].start + clips[-1].stored,
                **{_BYTES[kind]: size for kind, size in sizes.items()},
                "clips_sha256": hashlib.sha256(listed).hexdigest(),
            }
        )

    def _write(self, name: str, data: bytes) -> None:
        files.write_bytes(self.folder / name, data)


def _same(clip: CodeClip, known: dict[str, AudioMeta]) -> bool:
    """Whether a file and its metadata are unchanged since it was encoded."""
    meta = known.get(clip.path)
    if meta is None or meta.weight != clip.weight:
        return False
    try:
        found = meta.file.stat()
        info = metadata.read(meta.file)
    except (OSError, ValueError):
        return False
    # Older versions did not read .txt files and captions, so their clips have no description.
    older = dataclasses.replace(info, description=None)
    return (found.st_size, found.st_mtime_ns) == clip.source and clip.info in (info, older)


def _npy(parts: list[np.ndarray], dtype: type) -> bytes:
    """The concatenated rows as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(np.concatenate(parts), dtype), allow_pickle=False)
    return file.getvalue()


def _json(value: object, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent).encode()
