"""What changes while a piece plays: cues, and the scenes that they make.

A cue asks for a change from a second on. It takes effect at a frame: the first codebook's tokens
from that frame on are drawn under the new settings, and the delayed codebooks' at the same steps.
"""

import bisect
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from musicgen_jax.conditioning.text import Texts
from musicgen_jax.errors import UserError, is_number
from musicgen_jax.generation.settings import Sampling

MAX_CUES = 1000  # in a schedule that is given in advance
_SAMPLING = ("cfg_coef", "temperature")


class TooLate(UserError):
    """The music has come so far that the change can no longer take effect."""


@dataclasses.dataclass(frozen=True)
class Cue:
    """A change of the music from a second on; fields that are None leave the setting as it is.

    Attributes:
      seconds: from when on, counted from the beginning of the piece.
      description: of all clips from then on; "" for none.
      negative_description: what all clips move away from; "" for nothing.
      cfg_coef: see `Sampling`.
      temperature: see `Sampling`.

    Raises:
      UserError: a value has the wrong type or is out of range, or no value is set.
    """

    seconds: float
    description: str | None = None
    negative_description: str | None = None
    cfg_coef: float | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        if not is_number(self.seconds) or self.seconds < 0:
            raise UserError(
                f"the seconds of a cue must be a number from 0, got {_shown(self.seconds)}"
            )
        for name in ("description", "negative_description"):
            text = getattr(self, name)
            if text is not None and not isinstance(text, str):
                raise UserError(f"{name} must be a text in a cue, got {_shown(text)}")
        Sampling(**self.sampling)  # type: ignore[arg-type]
        if not self.texts and not self.sampling:
            raise UserError(
                "a cue must change something: description, negative_description, cfg_coef or "
                "temperature"
            )

    @property
    def texts(self) -> dict[str, str]:
        """The texts that the cue changes."""
        named = {
            "description": self.description,
            "negative_description": self.negative_description,
        }
        return {name: text for name, text in named.items() if text is not None}

    @property
    def sampling(self) -> dict[str, float]:
        """The fields of `Sampling` that the cue changes."""
        return {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}

    def fields(self) -> dict[str, Any]:
        """Everything that the cue changes, and when, by the names that `cue_of` reads."""
        named = {name: getattr(self, ours) for name, ours in _FIELDS.items()}
        return {name: value for name, value in named.items() if value is not None}


CueLike = Cue | tuple[float, str]
# In files and over HTTP, which have aliases for the names.
_FIELDS = {
    "seconds": "seconds",
    "prompt": "description",
    "negative_prompt": "negative_description",
    "cfg_coef": "cfg_coef",
    "temperature": "temperature",
}
_OTHER_NAMES = {
    "description": "description",
    "negative_description": "negative_description",
    "guidance_scale": "cfg_coef",
}


def cue_of(value: object) -> Cue:
    """A cue from JSON: [seconds, prompt], or an object with "seconds" and what changes.

    Raises:
      UserError: it is something else.
    """
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
        return Cue(*value)
    if not isinstance(value, dict):
        raise UserError(
            f'a cue must be [seconds, prompt] or {{"seconds": ..., ...}}, got {_shown(value)}'
        )
    found: dict[str, Any] = {}
    for name, given in value.items():
        ours = _FIELDS.get(name) or _OTHER_NAMES.get(name)
        if ours is None:
            raise UserError(f"a cue has no field {_shown(name)}, only {', '.join(_FIELDS)}")
        if ours in found:
            raise UserError(f"a cue has {name} under two names: give one of them")
        found[ours] = given
    if found.get("seconds") is None:
        raise UserError("a cue must say its seconds")
    return Cue(**found)


def check_schedule(schedule: Iterable[CueLike]) -> tuple[Cue, ...]:
    """The cues of a schedule: each a `Cue` or a pair (seconds, description), in order.

    Raises:
      UserError: they are something else.
    """
    form = "(seconds, description) or Cue(seconds, ...)"
    if isinstance(schedule, str) or not isinstance(schedule, Sequence):
        raise UserError(f"schedule must be a list of {form}, got {_shown(schedule)}")
    if len(schedule) > MAX_CUES:
        raise UserError(f"schedule has {len(schedule)} cues: at most {MAX_CUES} are taken")
    cues: list[Cue] = []
    for entry in schedule:
        if not isinstance(entry, Cue):
            if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 2:
                raise UserError(f"schedule must be a list of {form}, got {_shown(entry)} in it")
            if not isinstance(entry[1], str):
                raise UserError(f"description must be a text in a cue, got {_shown(entry[1])}")
            entry = Cue(*entry)
        if cues and entry.seconds <= cues[-1].seconds:
            raise UserError(
                f"schedule must be in order: {entry.seconds:g} s comes after {cues[-1].seconds:g} s"
            )
        cues.append(entry)
    return tuple(cues)


def _shown(value: object) -> str:
    return f"{value!r:.80}"


@functools.lru_cache  # a request makes several timelines
def _say_moved(asked: float, seconds: float) -> None:
    logging.getLogger("musicgen_jax").warning(
        "the text comes before the music in this model: the new text at %g s takes effect with "
        "the next window, at %g s",
        asked,
        seconds,
    )


@dataclasses.dataclass(frozen=True)
class Scene:
    """What holds for B clips from one change to the next.

    Raises:
      UserError: there is a negative description, and no guidance.
    """

    texts: Texts
    sampling: Sampling

    def __post_init__(self) -> None:
        if self.texts.negatives is not None and self.sampling.cfg_coef == 1:
            raise UserError(
                "cfg_coef 1 means no guidance, so a negative description would change nothing: "
                "choose "
                "another cfg_coef, such as 3"
            )

    def changed(self, cue: Cue) -> "Scene":
        """The scene after a cue."""
        batch, texts = len(self.texts.descriptions), self.texts
        if cue.description is not None:
            texts = dataclasses.replace(texts, descriptions=(cue.description or None,) * batch)
        if cue.negative_description is not None:
            negatives = (cue.negative_description,) * batch if cue.negative_description else None
            texts = dataclasses.replace(texts, negatives=negatives)
        return Scene(texts, dataclasses.replace(self.sampling, **cue.sampling))


class Timeline:
    """The scenes of one piece. Cues may be added while it is made.

    Args:
      first: what holds at the beginning.
      schedule: checked cues.
      frame_rate: frames per second.
      total: frames of the piece.
      text_frame: from a frame to the one where a new text takes effect, None for never. Default:
        the frame itself.

    Attributes:
      now: the next frame to be drawn; whoever makes the piece sets it.

    Raises:
      UserError: a cue is after the end, or can never take effect.
    """

    def __init__(
        self,
        first: Scene,
        schedule: Sequence[Cue],
        *,
        frame_rate: float,
        total: int,
        text_frame: Callable[[int], int | None] | None = None,
    ):
        self.now = 0
        self._rate, self._total, self._text_frame = frame_rate, total, text_frame
        self._frames: list[int] = []  # of the cues
        self._cues: list[Cue] = []
        self._scenes = [first]  # before the first cue, after it, and so on
        for cue in schedule:
            place = float(cue.seconds) * frame_rate + 1e-6  # may be infinite
            if place >= total:
                raise UserError(
                    f"the cue at {cue.seconds:g} s comes after the end of the music, at "
                    f"{total / frame_rate:g} s"
                )
            self.add(cue, math.floor(place))

    @property
    def schedule(self) -> tuple[Cue, ...]:
        """All cues, each at the second where it takes effect: the schedule of the same music."""
        return tuple(
            dataclasses.replace(cue, seconds=frame / self._rate)
            for frame, cue in zip(self._frames, self._cues, strict=True)
        )

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """All scenes that are known."""
        return tuple(self._scenes)

    def at(self, frame: int) -> Scene:
        """The scene that holds when a frame is drawn."""
        return self._scenes[bisect.bisect_right(self._frames, frame)]

    def after(self, frame: int) -> int | None:
        """The first later frame where something changes."""
        index = bisect.bisect_right(self._frames, frame)
        return self._frames[index] if index < len(self._frames) else None

    def add(self, cue: Cue, frame: int) -> float:
        """Adds a cue at a frame that is not drawn yet; `seconds` of the cue do not matter.

        Returns:
          the second where it takes effect: its texts, if it has any.

        Raises:
          UserError: the cue can never take effect, or is not allowed. Then nothing is added.
        """
        if frame >= self._total:
            raise TooLate("the music is finished: there is nothing left to change")
        texts = frame
        if cue.texts and self._text_frame is not None:
            later = self._text_frame(frame)
            if later is None:
                raise TooLate(
                    "the text comes before the music in this model, so a new text takes effect "
                    "with the next window, and this is the last window"
                )
            texts = later
            if texts != frame:
                _say_moved(frame / self._rate, texts / self._rate)
        at = [(texts, cue)]
        if texts != frame and cue.sampling:
            at = [
                (frame, Cue(cue.seconds, **cue.sampling)),  # type: ignore[arg-type]
                (texts, Cue(cue.seconds, **cue.texts)),  # type: ignore[arg-type]
            ]
        frames, cues, first = list(self._frames), list(self._cues), len(self._cues)
        for place, each in at:
            index = bisect.bisect_right(frames, place)
            if index and frames[index - 1] == place:  # one cue for one frame
                each = dataclasses.replace(cues[index - 1], **each.texts, **each.sampling)
                cues[index - 1] = each
                first = min(first, index - 1)
            else:
                frames.insert(index, place)
                cues.insert(index, each)
                first = min(first, index)
        scenes = self._scenes[: first + 1]  # those before the first change stay
        for each in cues[first:]:
            scenes.append(scenes[-1].changed(each))
        self._frames, self._cues, self._scenes = frames, cues, scenes
        return texts / self._rate
