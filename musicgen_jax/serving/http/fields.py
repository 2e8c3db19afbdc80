"""The fields of a request: one table that checks bodies and becomes the OpenAPI document."""

import dataclasses
import json
from typing import Any

from musicgen_jax.audio.encoding import MEDIA_TYPES
from musicgen_jax.audio.level import STRATEGIES
from musicgen_jax.config import JOINS
from musicgen_jax.errors import is_int, is_number
from musicgen_jax.generation.settings import (
    DEFAULT_DURATION,
    DEFAULT_SAMPLING,
    MAX_DURATION,
    MAX_SEED,
    MAX_STRENGTH,
)
from musicgen_jax.serving.http.errors import invalid

_TYPES = {"string": "a string", "number": "a finite number", "integer": "an integer",
          "boolean": "true or false", "array": "a list"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
      name: ours, which is audiocraft's where there is one.
      kind: its JSON type.
      help: what it is.
      default: what it is if it is missing or null.
      others: names for the same thing in other servers.
      schema: bounds, in the words of JSON Schema. Ranges are checked where a `Request` is made;
        "enum" is checked here.
    """

    name: str
    kind: str
    help: str
    default: Any = None
    others: tuple[str, ...] = ()
    schema: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self, value: Any, name: str) -> Any:
        """The value, if it has the right type; `name` is the one that the client used."""
        right = {
            "string": isinstance(value, str),
            "number": is_number(value),
            "integer": is_int(value) or (isinstance(value, float) and value.is_integer()),
            "boolean": isinstance(value, bool),
            "array": isinstance(value, list),
        }[self.kind]
        if not right:
            raise invalid(
                f"{name} must be {_TYPES[self.kind]}, got {_shown(value)}", name, "invalid_type"
            )
        if self.kind == "integer":
            value = int(value)
        choices = self.schema.get("enum")
        if choices is not None and value not in choices:
            listed = ", ".join(str(choice) for choice in choices)
            raise invalid(f"{name} must be one of {listed}, got {_shown(value)}", name)
        return value


def read(body: dict[str, Any], fields: tuple[Field, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a body by our names, defaults included.

    Args:
      body: as the client sent it. null is the same as missing.
      fields: that there are.

    Returns:
      values, and for each one that was given the name that the client used.

    Raises:
      HTTPError: 400 for an unknown field, a wrong type, or one field under two names.
    """
    known = {name: field for field in fields for name in (field.name, *field.others)}
    values = {field.name: field.default for field in fields}
    used: dict[str, str] = {}
    for name, value in body.items():
        field = known.get(name)
        if field is None:
            raise invalid(
                f"there is no field {_shown(name)}: use {', '.join(f.name for f in fields)}",
                name[:100],
                "unknown_field",
            )
        if field.name in used:
            raise invalid(f"{used[field.name]} and {name} are the same: give one of them", name)
        used[field.name] = name
        if value is not None:
            values[field.name] = field.check(value, name)
    return values, used


def from_form(texts: list[tuple[str, str]], fields: tuple[Field, ...]) -> dict[str, Any]:
    """A form's texts as a body: what is not a string is written as in JSON, and null is empty.

    Raises:
      HTTPError: 400 for a name that comes twice, or what is not JSON.
    """
    kinds = {name: field.kind for field in fields for name in (field.name, *field.others)}
    body: dict[str, Any] = {}
    for name, text in texts:
        if name in body:
            raise invalid(f"{_shown(name)} comes twice", name[:100])
        body[name] = text or None
        if text and kinds.get(name, "string") != "string":
            try:
                body[name] = strict_json(text)
            except (ValueError, RecursionError):
                kind = _TYPES[kinds[name]]
                raise invalid(
                    f"{name} must be {kind}, got {_shown(text)}", name, "invalid_type"
                ) from None
    return body


def strict_json(text: str) -> Any:
    """What a text holds as JSON.

    Raises:
      ValueError: it is not JSON, has NaN or an infinity, or an object with a name twice.
      RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_name_twice)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


# --- The table ------------------------------------------------------------------------------------

PROMPT = Field(
    "prompt", "string", "a description of the music; null for music without one",
    others=("input", "description"), schema={"minLength": 1, "maxLength": 2000},
)  # fmt: skip
_MODEL = Field("model", "string", "the model's name, if given")
_DURATION = Field(
    "duration", "number", "seconds", DEFAULT_DURATION, ("audio_length",), {"exclusiveMinimum": 0}
)
_STRENGTH = {"minimum": -MAX_STRENGTH, "maximum": MAX_STRENGTH}
_MUSIC = (
    Field("negative_prompt", "string", "what the music should move away from; null for nothing",
          None, ("negative_description",), {"maxLength": 2000}),
    Field("seed", "integer", "same seed, same music", 0, (), {"minimum": 0, "maximum": MAX_SEED}),
    Field("use_sampling", "boolean", "false takes the most likely token at every step",
          DEFAULT_SAMPLING.use_sampling),
    Field("temperature", "number", "higher is more random; 0 takes the most likely token",
          DEFAULT_SAMPLING.temperature, (), {"minimum": 0, "maximum": MAX_STRENGTH}),
    Field("top_k", "integer", "sample among the k most likely tokens; 0: all",
          DEFAULT_SAMPLING.top_k, (), {"minimum": 0}),
    Field("top_p", "number", "sample among the tokens that reach this probability; 0: all",
          DEFAULT_SAMPLING.top_p, (), {"minimum": 0, "maximum": 1}),
    Field("cfg_coef", "number", "how closely to follow the description",
          DEFAULT_SAMPLING.cfg_coef, ("guidance_scale",), _STRENGTH),
    Field("cfg_coef_beta", "number", "how closely to follow it when there is a melody or a style",
          None, (), _STRENGTH),
    Field("extend_stride", "number", "seconds between two windows of a long piece"),
    Field("join", "string", "how windows are joined", "hard", (), {"enum": list(JOINS)}),
    Field("strategy", "string", "the level: as the codec gives it (clip), or of the whole clip",
          "clip", (), {"enum": list(STRATEGIES)}),
    Field("deadline", "number", "seconds after which the server gives up on the music", None, (),
          {"minimum": 1, "maximum": MAX_DURATION}),
)  # fmt: skip
_TEXT = {"type": ["string", "null"], "maxLength": 2000}
_AMOUNT = {"type": ["number", "null"], **_STRENGTH}
_CHANGES = {
    "prompt": _TEXT,
    "negative_prompt": _TEXT,
    "cfg_coef": _AMOUNT,
    "temperature": {**_AMOUNT, "minimum": 0},
}
_CUE = {
    "type": "object",
    "properties": {"seconds": {"type": "number", "minimum": 0}, **_CHANGES},
    "required": ["seconds"],
}
_PAIR = {
    "type": "array",
    "prefixItems": [{"type": "number", "minimum": 0}, {"type": "string", "maxLength": 2000}],
    "minItems": 2,
    "maxItems": 2,
}
SCHEDULE = Field(
    "schedule", "array", "what changes while the music plays, in order: [seconds, prompt] or an "
    "object with seconds, and prompt, negative_prompt, cfg_coef or temperature",
    schema={"items": {"anyOf": [_PAIR, _CUE]}, "maxItems": 1000},
)  # fmt: skip
# What can be changed while music is made.
STEER = (
    Field("prompt", "string", "a new description; empty for none", None, ("description",),
          {"maxLength": 2000}),
    Field("negative_prompt", "string", "what the music should move away from; empty for nothing",
          None, ("negative_description",), {"maxLength": 2000}),
    Field("cfg_coef", "number", "how closely to follow the description", None,
          ("guidance_scale",), _STRENGTH),
    Field("temperature", "number", "higher is wilder", None, (),
          {"minimum": 0, "maximum": MAX_STRENGTH}),
)  # fmt: skip
_SPEED = Field("speed", "number", "must be 1: music has no other speed", 1, (), {"enum": [1]})


def _form(default: str) -> Field:
    return Field(
        "response_format", "string", "of the audio", default, (), {"enum": list(MEDIA_TYPES)}
    )


# Files of a form, by their names there.
CONTINUED = "continue_from"
FILES = {
    "melody": "audio whose melody the music follows (melody models)",
    "style": "audio whose style the music imitates (the style model)",
    CONTINUED: "audio that the music begins with; the duration includes it",
}
_STREAMS = Field(
    "stream_format", "string", "audio, or server-sent events with audio in base64", "audio", (),
    {"enum": ["audio", "sse"]},
)  # fmt: skip
_DESCRIPTIONS = Field(
    "descriptions", "array", "audiocraft's name for prompt: a list of one text",
    schema={"items": {"type": "string"}, "minItems": 1, "maxItems": 1},
)  # fmt: skip
GENERATE = (
    PROMPT, _DESCRIPTIONS, _MODEL, _DURATION, *_MUSIC, SCHEDULE, _form("wav"),
    Field("endless", "boolean", "music without an end, streamed until the listener leaves; "
          "without duration", False),
    Field("stream", "boolean", "send audio while it is made", False), _STREAMS, _SPEED,
    Field("audio_start", "number", "must be 0: a clip begins at its beginning", 0, (),
          {"enum": [0]}),
)  # fmt: skip
SPEECH = (
    dataclasses.replace(PROMPT, name="input", others=("prompt", "description"),
                        help="a description of the music"),
    _MODEL,
    Field("voice", "string", "has no effect: music has no voice"),
    Field("instructions", "string", "more of the description", schema={"maxLength": 2000}),
    _DURATION, *_MUSIC, _form("mp3"), _STREAMS, _SPEED,
)  # fmt: skip
JOB = (PROMPT, _DESCRIPTIONS, _MODEL, _DURATION, *_MUSIC, SCHEDULE, _form("wav"))
