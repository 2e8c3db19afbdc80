"""A listening study: its pieces, their clips under neutral names, and the questions."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

from musicgen_jax import files
from musicgen_jax.config.schema import Between, Natural, Positive, Share, from_dict, to_dict
from musicgen_jax.errors import UserError

FORMAT = "musicgen-jax listening study 1"
REFERENCE = "reference"  # the system of this name is the hidden reference
ANCHOR = "anchor"  # made from the reference; no system may have this name
LOWEST, HIGHEST = 1, 100
FILE = re.compile(r"[0-9a-f]{16}\.wav")  # the name says nothing about the system

_Name = Annotated[str, Between(1, 200)]


@dataclasses.dataclass(frozen=True)
class Scale:
    """A question that a slider answers.

    Attributes:
      short: heading of its column in tables, as in the MusicGen paper.
      label: what raters see.
      question: the label in a sentence.
    """

    short: str
    label: str
    question: str


SCALES = {
    "overall": Scale("OVL", "Overall quality", "How good does this clip sound, all in all?"),
    "relevance": Scale("REL", "Fits the text", "How well does the music fit the description?"),
    "melody": Scale("MEL", "Follows the melody", "How well does the music follow the melody?"),
}


@dataclasses.dataclass(frozen=True)
class Clip:
    """One system's clip of a piece, and its file in `clips/`."""

    system: _Name
    file: _Name


@dataclasses.dataclass(frozen=True)
class Item:
    """A piece, with everything that its clips have in common.

    Attributes:
      id: the name that its clips had.
      text: the description, or None; then nobody is asked whether the clips fit it.
      melody: the melody's file in `clips/`, or None.
      clips: one for each system.
    """

    id: _Name
    text: Annotated[str, Between(1, 10_000)] | None
    melody: _Name | None
    clips: tuple[Clip, ...]

    @property
    def scales(self) -> tuple[str, ...]:
        """What is asked about each clip: keys of `SCALES`."""
        asked = ["overall"]
        if self.text is not None:
            asked.append("relevance")
        if self.melody is not None:
            asked.append("melody")
        return tuple(asked)


@dataclasses.dataclass(frozen=True)
class Study:
    """The file `study.json`.

    Attributes:
      format: `FORMAT`.
      id: chosen at random; the answers contain it, too.
      inputs: digest of the files and settings that the study was made from.
      title: title of the page.
      seed: seed of the order of pieces and clips, see `order`.
      per_rater: how many pieces one rater hears.
      must_hear: the share of a clip that a rater hears before the page takes a score.
      sample_rate: of all clips, in Hz.
      systems: their names; with a reference, it and the anchor come last.
      items: the pieces.
    """

    format: _Name
    id: _Name
    inputs: _Name
    title: _Name
    seed: Natural
    per_rater: Positive
    must_hear: Share
    sample_rate: Positive
    systems: Annotated[tuple[_Name, ...], Between(1, 50)]
    items: Annotated[tuple[Item, ...], Between(1, 100_000)]

    def __post_init__(self):
        if self.format != FORMAT:
            raise ValueError(f"it is a {self.format!r}, not a {FORMAT!r}")
        names = [clip.file for item in self.items for clip in item.clips]
        names += [item.melody for item in self.items if item.melody is not None]
        if len(set(names)) != len(names):
            raise ValueError("two clips have one file")
        for name in names:  # the server opens these
            if not FILE.fullmatch(name):
                raise ValueError(f"{name!r:.80} is not the name of a clip")
        for item in self.items:
            if sorted(clip.system for clip in item.clips) != sorted(self.systems):
                raise ValueError(f"the clips of {item.id!r:.80} are not those of the systems")

    @property
    def scales(self) -> tuple[str, ...]:
        """What is asked about at least one piece, in the order of `SCALES`."""
        asked = {scale for item in self.items for scale in item.scales}
        return tuple(scale for scale in SCALES if scale in asked)


def clips_folder(folder: Path) -> Path:
    """Where the clips of a study are."""
    return folder / "clips"


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study, of whatever format."""
    return (folder / "study.json").is_file()


def load(folder: Path) -> Study:
    """Reads a study.

    Raises:
      UserError: the folder holds none, or one that cannot be read.
    """
    if not is_study(folder):
        raise UserError(
            f"{folder} holds no listening study: make one with musicgen-jax listen --systems "
            "NAME=DIR ... --out STUDY"
        )
    path = folder / "study.json"
    try:
        study = from_dict(Study, files.read_json(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    missing = [
        name
        for item in study.items
        for name in (*(clip.file for clip in item.clips), item.melody)
        if name is not None and not (clips_folder(folder) / name).is_file()
    ]
    if missing:
        raise UserError(
            f"{clips_folder(folder) / missing[0]} is missing ({len(missing)} clips in all): "
            f"restore the folder, or make the study again"
        )
    return study


def dump(study: Study) -> bytes:
    """The text of `study.json`."""
    return json.dumps(to_dict(study), indent=1, ensure_ascii=False).encode() + b"\n"
