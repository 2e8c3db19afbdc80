"""From the body of a request to the values for the scheduler and the answer, checked once."""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from musicgen_jax.audio.encoding import check_wav
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.schedule import Cue, cue_of
from musicgen_jax.generation.settings import MAX_DURATION, Sampling
from musicgen_jax.serving.http import fields
from musicgen_jax.serving.http.errors import HTTPError, invalid
from musicgen_jax.serving.http.settings import Settings

# Names of OpenAI's models that its clients use by default.
_OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A client's request.

    Attributes:
      request: of one clip.
      form: of the audio, a key of `MEDIA_TYPES`.
      streamed: whether audio is sent while it is made.
      events: whether it is sent as server-sent events.
      strategy: how the level is set.
      deadline: seconds, or None.
      longest: seconds of music without an end that are sent.
      files: that came with it, by their names.
      heard: what the model understands of the description, see `Settings.hear`.
    """

    request: Request
    form: str
    streamed: bool
    events: bool
    strategy: str
    deadline: float | None
    longest: float
    files: tuple[str, ...] = ()
    heard: str | None = None

    @property
    def prompt(self) -> str | None:
        """The description."""
        return self.request.descriptions[0]

    def described(self, schedule: Sequence[Cue]) -> dict[str, Any]:
        """The texts, by the names of fields.

        Args:
          schedule: what has changed, and will change, in the music.
        """
        negatives = self.request.negative_descriptions
        named = {
            "prompt": self.prompt,
            "negative_prompt": negatives[0] if negatives else None,
            "schedule": [cue.fields() for cue in schedule] or None,
        }
        return {name: text for name, text in named.items() if text or name == "prompt"}

    @property
    def seconds(self) -> float:
        """The length of the music; for music without an end, the most that is sent."""
        if self.request.endless:
            return self.longest
        return self.request.frames / self.request.config.frame_rate

    @property
    def samples(self) -> int:
        """The length of the audio, per channel."""
        config = self.request.config
        return round(self.seconds * config.sample_rate)

    def settings(self) -> dict[str, Any]:
        """Everything that shapes the music, by the names of fields, except the texts."""
        request = self.request
        named = {
            "duration": request.duration,
            "endless": request.endless or None,
            "seed": request.seed,
            **dataclasses.asdict(request.sampling),
            "extend_stride": request.extend_stride,
            "join": request.join,
            "strategy": self.strategy,
            **dict.fromkeys(self.files, "a file that came with the request"),
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
      fields: that it has.
      is_job: whether no connection stays open for it, so that it may be longer.
      is_speech: whether it is OpenAI's, whose answers are streams.
    """

    fields: tuple[fields.Field, ...]
    is_job: bool = False
    is_speech: bool = False

    def read(self, body: dict[str, Any], config: MusicGenConfig, settings: Settings) -> Asked:
        """The request in a body of this kind.

        Raises:
          HTTPError: 400, or 404 for another model.
        """
        longest = settings.max_job_duration if self.is_job else settings.max_duration
        if self.is_speech and body.get("model") in _OPENAI_MODELS:
            body = {**body, "model": None}
        return _asked(body, self, config, settings, longest)


GENERATE = Kind(fields.GENERATE)
SPEECH = Kind(fields.SPEECH, is_speech=True)
JOB = Kind(fields.JOB, is_job=True)


def _asked(
    body: dict[str, Any],
    kind: Kind,
    config: MusicGenConfig,
    settings: Settings,
    longest: float,
) -> Asked:
    values, used = fields.read(body, kind.fields)
    model = values["model"]
    if model is not None and model != settings.model:
        raise HTTPError(
            404,
            f"there is no model {_quoted(model)} here: this is {settings.model}",
            "model_not_found",
            param="model",
        )
    prompt = _description(values, used, settings.text)
    cues = [_cue(value, settings.text) for value in values.get("schedule") or ()]
    endless = bool(values.get("endless"))
    if endless and body.get(used.get("duration", "duration")) is not None:
        raise invalid("endless music has no duration: give one of the two", used["duration"])
    negative = values["negative_prompt"] or ""
    _check_text(negative, used.get("negative_prompt", "negative_prompt"), settings.text)
    name = used.get("duration", "duration")
    if body.get(name) is None:
        values["duration"] = min(values["duration"], longest)
    if values["duration"] > longest:
        raise invalid(f"{name} must be at most {longest:g} seconds, got {values['duration']}", name)
    deadline = values["deadline"]
    if deadline is not None and not 1 <= deadline <= MAX_DURATION:
        raise invalid(
            f"deadline must be from 1 to {MAX_DURATION} seconds, got {deadline}", "deadline"
        )
    try:
        names = (field.name for field in dataclasses.fields(Sampling))
        request = Request(
            config=config,
            descriptions=[prompt],
            duration=None if endless else values["duration"],
            schedule=cues,
            seed=values["seed"],
            sampling=Sampling(**{name: values[name] for name in names}),
            extend_stride=values["extend_stride"],
            join=values["join"],
            negative_descriptions=[negative] if negative.strip() else None,
        )
    except UserError as error:
        raise _at_field(error, used, "schedule" if cues else None) from error
    events = values.get("stream_format") == "sse"
    streamed = events or kind.is_speech or bool(values.get("stream"))
    if endless and not streamed:
        raise invalid("endless music must be streamed: add stream", "endless")
    strategy = values["strategy"]
    if streamed and strategy != "clip":
        raise invalid(
            f"strategy must be clip in a stream, got {strategy}: the others need the whole music",
            "strategy",
        )
    form, most = values["response_format"], settings.max_endless or settings.max_job_duration
    heard = settings.hear(prompt) if settings.hear is not None and prompt else None
    asked = Asked(request, form, streamed, events, strategy, deadline, most, heard=heard)
    if form == "wav" and not streamed:
        try:
            check_wav(config.audio_channels, asked.samples)
        except UserError as error:
            raise invalid(str(error), "response_format") from error
    return asked


def _description(values: dict[str, Any], used: dict[str, str], longest: int) -> str | None:
    """The description from all the fields that may hold it."""
    field = "input" if "input" in values else "prompt"
    if field not in used and "descriptions" not in used:
        raise invalid(f"{field} is missing: describe the music", field, "missing_field")
    text, name = values[field], used.get(field, "descriptions")
    several = values.get("descriptions")
    if several is not None:
        if text is not None or len(several) != 1 or not isinstance(several[0], str):
            raise invalid("descriptions must be a list of one text, without prompt", "descriptions")
        text = several[0]
    if text is None:
        if field == "input":
            raise invalid(f"{name} must be a description of the music, got null", name)
        return None
    _check_text(text, name, longest)
    if not text.strip():
        raise invalid(f"{name} is empty: describe the music", name)
    more = values.get("instructions") or ""
    _check_text(more, "instructions", longest)
    return f"{text}, {more}" if more.strip() else text


def _cue(value: Any, longest: int) -> Cue:
    try:
        cue = cue_of(value)
    except UserError as error:
        raise invalid(f"schedule: {error}", "schedule") from error
    for text in cue.texts.values():
        _check_text(text, "schedule", longest)
    return cue


def steering(body: dict[str, Any], settings: Settings) -> Cue:
    """The changes that a body asks for.

    Raises:
      HTTPError: 400.
    """
    values, used = fields.read(body, fields.STEER)
    for name in ("prompt", "negative_prompt"):
        _check_text(values[name] or "", used.get(name, name), settings.text)
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        names = ", ".join(field.name for field in fields.STEER)
        raise invalid(f"there is nothing to change: give one of {names}")
    try:
        return cue_of({"seconds": 0.0, **given})
    except UserError as error:
        raise _at_field(error, used) from error


def _check_text(text: str, name: str, longest: int) -> None:
    if len(text) > longest:
        raise invalid(
            f"{name} must have at most {longest} characters, got {len(text)}", name, "text_too_long"
        )
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            raise invalid(
                f"{name} holds the control character U+{ord(character):04X}: remove it", name
            )


def _at_field(error: UserError, used: dict[str, str], other: str | None = None) -> HTTPError:
    """The refusal of a `Request`, whose message begins with the name of the wrong argument.

    Args:
      error: of the request.
      used: the names that the client used, by ours.
      other: what is at fault if the client used nothing of that name.
    """
    start = re.match(r"(?:a )?(\w+)", str(error))
    return invalid(str(error), used.get(start[1] if start else "", other))


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= 60 else f"{text[:60]}...")
