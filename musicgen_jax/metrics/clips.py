"""Sets of clips: folders, and manifests."""

import os
from pathlib import Path

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import tables
from musicgen_jax.metrics.captions import clip_id

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
_FILES = ("file", "path", "audio")


def find_clips(place: str | os.PathLike) -> dict[str, Path]:
    """The clips of a folder or of a manifest.

    Args:
      place: a folder: the audio files in it and in its folders, without hidden ones. Or a manifest:
        a csv, tsv or jsonl file with a column `file` (or `path`) and optionally `id`. Paths are
        relative to the manifest.

    Returns:
      {id: file}, sorted by id: the path inside the folder without its suffix, unless the manifest
      names another. The files of a manifest need not exist.

    Raises:
      UserError: there is no such place, it holds no audio, or two files have one id.
    """
    place = Path(place)
    if place.is_file():
        return _of_manifest(place)
    if not place.is_dir():
        raise UserError(f"{place} is not a folder")
    clips: dict[str, Path] = {}
    for file in sorted(place.rglob("*")):
        inside = file.relative_to(place)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or file.suffix.lower() not in SUFFIXES or not file.is_file():
            continue
        _add(clips, inside.with_suffix("").as_posix(), file)
    if not clips:
        raise UserError(f"{place} contains no audio files ({', '.join(SUFFIXES)})")
    return dict(sorted(clips.items()))


def _of_manifest(manifest: Path) -> dict[str, Path]:
    rows = tables.read(manifest)
    column = tables.column(rows, _FILES, manifest, "the file")
    clips: dict[str, Path] = {}
    for line, values in rows:
        file = values.get(column)
        if not isinstance(file, str) or not file.strip() or "\0" in file:
            raise UserError(f"{manifest}, line {line}: the file is missing")
        name = clip_id(values.get("id"), "id") or clip_id(file, "file")
        _add(clips, name, manifest.parent / file.strip())
    return dict(sorted(clips.items()))


def _add(clips: dict[str, Path], name: str, file: Path) -> None:
    # `batch` may have written a clip twice; then its manifest lists it twice.
    if clips.setdefault(name, file) != file:
        raise UserError(f"{clips[name]} and {file} have the same name: keep one of them")
