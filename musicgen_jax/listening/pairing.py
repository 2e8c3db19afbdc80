"""Which clips belong together: one of each system, by name."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from musicgen_jax.errors import UserError
from musicgen_jax.listening.captions import Caption
from musicgen_jax.metrics.clips import find_clips


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece before its clips are rendered: one clip of every system.

    Attributes:
      id: the name of its clips inside their folders, without the suffix.
      caption: the request.
      clips: {system: file}.
    """

    id: str
    caption: Caption
    clips: dict[str, Path]


def pair(
    systems: Mapping[str, Path], captions: Mapping[str, Caption] | None
) -> tuple[list[Piece], list[str]]:
    """Finds the pieces that every system has.

    Args:
      systems: {name: folder}.
      captions: {id: caption}; where given, they say which pieces there are.

    Returns:
      the pieces, sorted by id, and a line about each system or file without a match in the others.

    Raises:
      UserError: a folder is missing or empty, or the systems share no piece.
    """
    found = {system: find_clips(folder) for system, folder in systems.items()}
    everything = set().union(*found.values())
    wanted = sorted(everything if captions is None else captions)
    shared = [name for name in wanted if all(name in clips for clips in found.values())]
    notes = []
    for system, clips in found.items():
        missing = [name for name in wanted if name not in clips]
        if missing:
            notes.append(f"{system} has no clip for {_names(missing, len(wanted))}")
    if captions is not None:
        extra = sorted(everything - captions.keys())
        if extra:
            notes.append(f"the captions have no line for {_names(extra)}")
    if not shared:
        raise UserError(
            f"no piece has a clip of every system: {'; '.join(notes)}; clips belong together if "
            "they have the same name in their folders" + (" and in the captions" * bool(captions))
        )
    none = Caption(None, None)
    return [
        Piece(
            name,
            captions[name] if captions is not None else none,
            {system: clips[name] for system, clips in found.items()},
        )
        for name in shared
    ], notes


def _names(names: list[str], total: int | None = None) -> str:
    """A few of the names, and how many there are."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    of = f" of {total}" if total is not None else ""
    return f"{len(names)}{of} pieces ({shown})" if len(names) > 1 else shown
