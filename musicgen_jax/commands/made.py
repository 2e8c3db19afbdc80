"""The settings that every clip of the command line carries, see `audio.clip_settings`."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_jax.audio import clip_settings
from musicgen_jax.generation.settings import Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from musicgen_jax.generation.program_name import ProgramName
    from musicgen_jax.generation.schedule import Cue
    from musicgen_jax.model import MusicGen

_SOUNDS = ("continue_from", "melody", "style")
_OF_A_STYLE = ("eval_q", "excerpt_length")


def settings(
    args: argparse.Namespace,
    model: "MusicGen",
    sampling: Sampling,
    *,
    prompt: str | None,
    negative: str | None,
    schedule: "Sequence[Cue]" = (),
    seed: int,
    clip: int | None = None,
    program: "ProgramName | None",
) -> dict[str, Any]:
    """What is needed to make a clip again, by the names that the server uses as well.

    Files are named without their folders, an adapter with its strength. `clip` is the number of
    the clip among those that share a seed.
    """
    used = {name: getattr(args, name, None) for name in _SOUNDS}
    named = {
        "model": model.name or Path(args.model).name,
        "prompt": prompt,
        "negative_prompt": negative or None,
        "schedule": [cue.fields() for cue in schedule] or None,
        "duration": args.duration,
        "seed": seed,
        "clip": clip,
        **dataclasses.asdict(sampling),
        "extend_stride": args.extend_stride,
        "join": args.join,
        "strategy": args.strategy,
        **{name: Path(file).name for name, file in used.items() if file},
        **({name: getattr(args, name) for name in _OF_A_STYLE} if used["style"] else {}),
        "adapter": [Path(each).name for each in getattr(args, "adapter", ())] or None,
        "program": str(program),
    }
    kept = ("prompt", "program")
    return {name: value for name, value in named.items() if value is not None or name in kept}


def comment(*arguments: Any, **named: Any) -> str:
    """The same as text, for a file's comment."""
    return clip_settings.dump(settings(*arguments, **named))
