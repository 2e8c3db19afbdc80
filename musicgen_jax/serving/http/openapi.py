"""The description of the server for programs: OpenAPI 3.1, from the table that checks bodies."""

from typing import Any

from musicgen_jax import __version__
from musicgen_jax.audio.encoding import MEDIA_TYPES
from musicgen_jax.generation.settings import DEFAULT_DURATION
from musicgen_jax.serving.http import fields
from musicgen_jax.serving.http.fields import Field
from musicgen_jax.serving.http.settings import Settings

_MADE = {
    "X-Seed": "the seed",
    "X-Program": "name of the program, on which the samples depend",
    "X-Settings": "everything that shapes the music, as JSON",
    "X-Duration": "seconds",
    "X-Sample-Rate": "in Hz",
    "X-Channels": "1 or 2",
    "X-Heard": "nano only: what it understands of the description, as a JSON string",
    "X-Stream-Id": "streams only: the id for changing the stream",
}

# Raw bytes in a form, in the words of OpenAPI 3.1.
_SOUND = {"type": "string", "contentMediaType": "application/octet-stream"}


def document(settings: Settings) -> dict[str, Any]:
    """The whole document."""
    audio, longest = _audio(), settings.max_duration
    job_audio = {**audio, "206": {**audio["200"], "description": "a part of the audio"}}
    job_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "musicgen-jax serve",
            "version": __version__,
            "description": "Text to music. Errors have the shape of OpenAI's.",
        },
        "paths": {
            "/v1/audio/generate": {
                "post": _operation(
                    "Make a clip, whole or streamed", audio, (400, 404, 408, 413, 415, 429,
                    503, 504), _body(fields.GENERATE, longest, settings, files=True),
                ),
            },
            "/v1/audio/speech": {
                "post": _operation(
                    "Make a clip with OpenAI's fields", audio, (400, 404, 408, 413, 415, 429, 503,
                    504), _body(fields.SPEECH, longest, settings, files=False),
                ),
            },
            "/v1/jobs": {
                "post": _operation(
                    "Start a long piece", {"202": _json("the job", "Job")}, (400, 404, 408, 413,
                    415, 429, 503),
                    _body(fields.JOB, settings.max_job_duration, settings, files=True),
                ),
            },
            "/v1/jobs/{id}": {
                "parameters": [job_id],
                "get": _operation("Look at a job", {"200": _json("the job", "Job")}, (404,)),
                "delete": _operation(
                    "Cancel a job and forget it", {"200": _json("the job", "Job")}, (404,)
                ),
            },
            "/v1/jobs/{id}/events": {
                "parameters": [job_id],
                "get": _operation(
                    "Follow a job", {"200": _text("events", "text/event-stream", _EVENT)}, (404,)
                ),
            },
            "/v1/jobs/{id}/audio": {
                "parameters": [job_id],
                "get": _operation("Fetch a job's music", job_audio, (404, 409, 416)),
            },
            "/v1/jobs/{id}/steer": {
                "parameters": [job_id],
                "post": _operation("Change a job's music while it is made", _STEERED,
                                   (400, 404, 408, 409, 413, 415), _steer(settings)),
            },
            "/v1/audio/streams/{id}/steer": {
                "parameters": [job_id],
                "post": _operation("Change a stream while it is made", _STEERED,
                                   (400, 404, 408, 409, 413, 415), _steer(settings)),
            },
            "/v1/models": {"get": _operation("The model", {"200": _json("a list", "Models")})},
            "/v1/models/{name}": {
                "parameters": [{**job_id, "name": "name"}],
                "get": _operation("The model", {"200": _json("the model", "Model")}, (404,)),
            },
            "/health": {
                "get": _operation("Whether it is alive", {"200": _json("ok", "Status")}, (503,))
            },
            "/ready": {
                "get": _operation(
                    "Whether nothing compiles any more", {"200": _json("ready", "Status")}, (503,)
                )
            },
            "/metrics": {
                "get": _operation("For Prometheus", {"200": _text("metrics", "text/plain")})
            },
            "/openapi.json": {
                "get": _operation("This document", {"200": _json("OpenAPI", "Any")})
            },
        },
        "components": {"schemas": _SCHEMAS},
    }  # fmt: skip
    if settings.token is not None:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def _operation(
    summary: str,
    answers: dict[str, Any],
    errors: tuple[int, ...] = (),
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    always = (400, 401, 403, 421, 500)  # a head that is not HTTP, the token, the origin, the host
    failures = {str(code): _json("an error", "Error") for code in sorted({*always, *errors})}
    for code in {"429", "503"} & failures.keys():
        failures[code]["headers"] = {"Retry-After": _header("seconds", "integer")}
    operation: dict[str, Any] = {"summary": summary, "responses": {**answers, **failures}}
    return operation if body is None else {**operation, "requestBody": body}


def _body(
    table: tuple[Field, ...], longest: float, settings: Settings, *, files: bool
) -> dict[str, Any]:
    """A body with all names of all fields."""
    properties = {
        name: _schema(field, longest, settings)
        for field in table
        for name in (field.name, *field.others)
    }
    schema: dict[str, Any] = {
        "type": "object", "properties": properties, "additionalProperties": False,
    }  # fmt: skip
    prompt = next(field for field in table if field.name in ("prompt", "input"))
    names = [prompt.name, *prompt.others]
    names += ["descriptions"] if "descriptions" in properties else []
    schema["oneOf"] = [{"required": [name]} for name in names]
    twice = [[field.name, *field.others] for field in table if field.others and field != prompt]
    schema["allOf"] = [{"not": {"required": names}} for names in twice]
    content = {"application/json": {"schema": schema}}
    if files:
        texts = {name: _in_form(each) for name, each in properties.items()}
        sounds = {name: {**_SOUND, "description": text} for name, text in fields.FILES.items()}
        form = {**schema, "properties": {**texts, **sounds}}
        content["multipart/form-data"] = {"schema": form}
    return {"required": True, "content": content}


def _steer(settings: Settings) -> dict[str, Any]:
    """The body of a change."""
    properties = {
        name: _schema(field, 0, settings)
        for field in fields.STEER
        for name in (field.name, *field.others)
    }
    schema: dict[str, Any] = {
        "type": "object", "properties": properties, "additionalProperties": False,
        "minProperties": 1,
        "allOf": [
            {"not": {"required": [field.name, *field.others]}}
            for field in fields.STEER if field.others
        ],
    }  # fmt: skip
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _schema(field: Field, longest: float, settings: Settings) -> dict[str, Any]:
    bounds = dict(field.schema)
    if "maxLength" in bounds:
        bounds["maxLength"] = settings.text
    if "enum" in bounds:
        bounds["enum"] = [*bounds["enum"], None]
    schema = {"type": [field.kind, "null"], "description": field.help, **bounds}
    if field.default is not None:
        schema["default"] = field.default
    if field.name == "duration":
        schema |= {"maximum": longest, "default": min(DEFAULT_DURATION, longest)}
    return schema


def _in_form(schema: dict[str, Any]) -> dict[str, Any]:
    """A field in a form, where an empty text stands for null."""
    found = {word: bound for word, bound in schema.items() if word != "minLength"}
    if "string" not in found["type"]:
        found |= {"type": [*found["type"], "string"], "maxLength": 0}
    if "enum" in found:
        found["enum"] = [*found["enum"], ""]
    return found


def _audio() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    kinds = dict.fromkeys(MEDIA_TYPES.values(), binary)
    kinds["text/event-stream"] = {"schema": _EVENT}
    headers = {name: _header(text) for name, text in _MADE.items()}
    return {"200": {"description": "the audio", "headers": headers, "content": kinds}}


def _header(text: str, kind: str = "string") -> dict[str, Any]:
    return {"description": text, "schema": {"type": kind}}


def _json(description: str, name: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text(description: str, media_type: str, schema: Any = None) -> dict[str, Any]:
    content = {media_type: {"schema": schema or {"type": "string"}}}
    return {"description": description, "content": content}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
_STEERED = {
    "200": _json("where it takes effect", "Steering"),
    "202": _json("it waits for a slot", "Steering"),
}
_STRING, _INTEGER, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
_MAYBE = {"type": ["string", "null"]}
_MODEL = _object(
    id=_STRING, object={"const": "model"}, created=_INTEGER, owned_by=_STRING, sample_rate=_INTEGER,
    channels=_INTEGER, window=_NUMBER, max_duration=_NUMBER, max_job_duration=_NUMBER,
    programs={"type": "array", "items": _STRING},
)  # fmt: skip
_SCHEMAS: dict[str, Any] = {
    "Any": {"type": "object"},
    "Error": _object(error=_object(message=_STRING, type=_STRING, param=_MAYBE, code=_STRING)),
    "Status": _object(status=_STRING, model=_STRING),
    "Model": _MODEL,
    "Models": _object(object={"const": "list"}, data={"type": "array", "items": _MODEL}),
    "Steering": _object(
        id=_STRING,
        object={"const": "steering"},
        seconds={"type": ["number", "null"], "description": "where it takes effect, once known"},
        frame={"type": ["integer", "null"]},
        schedule={"type": "array", "items": {"type": "object"}},
    ),
    "Job": _object(
        id=_STRING,
        object={"const": "job"},
        status={"enum": ["queued", "in_progress", "completed", "failed", "cancelled"]},
        created_at=_INTEGER,
        model=_STRING,
        position={**_INTEGER, "description": "place in the queue, from 1; 0: it does not wait"},
        progress=_object(steps=_INTEGER, total=_INTEGER),
        duration=_NUMBER,
        seed=_INTEGER,
        program=_STRING,
        response_format=_STRING,
        bytes={"type": ["integer", "null"]},
        error={"type": ["object", "null"]},
    ),
}
