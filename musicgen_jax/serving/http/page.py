"""The page of `musicgen-jax app`: static files, and routes that only the page needs.

    GET  /, /app.css, /app.js   the page, and its other scripts
    GET  /app/about             the model, its licence, its limits, examples and defaults
    POST /app/encode/FORM       samples that the page holds, as a file in another format
    POST /app/chroma            the melody that the model hears in a sound file
    GET  /app/clips/NAME        place in the queue and steps of a clip, named by its header X-Clip;
                                null before and after it is made
    POST /app/model             another model: clips that are being made are finished first

The page makes music through the same routes as every other client.
"""

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from musicgen_jax.audio.encoding import MEDIA_TYPES, encode
from musicgen_jax.errors import UserError
from musicgen_jax.generation.settings import DEFAULT_DURATION, DEFAULT_SAMPLING, MAX_SEED
from musicgen_jax.serving.http import uploads
from musicgen_jax.serving.http.body import parse, read_bytes, read_json
from musicgen_jax.serving.http.errors import HTTPError, invalid
from musicgen_jax.serving.http.service import Service
from musicgen_jax.serving.http.settings import Settings

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # another release may follow under the same address
}
_LARGEST_SEED = 2**53 - 1  # a page has no larger integers
_COMMENT_BYTES = 1 << 16


def routes(service: Service) -> list[Route]:
    """The routes of the page; none if the server has no page."""
    about = service.settings.page
    if about is None:
        return []
    files = sorted((Path(__file__).parent / "page").iterdir())
    config, settings = service.config, service.settings
    defaults = {"duration": DEFAULT_DURATION, **dataclasses.asdict(DEFAULT_SAMPLING)}
    told = {
        **dataclasses.asdict(about),
        "model": settings.model,
        "started": service.created,
        "sample_rate": config.sample_rate,
        "channels": config.audio_channels,
        "frame_rate": config.frame_rate,
        "window": config.max_duration,
        "takes": uploads.taken_by(config),
        "text_in_front": config.lm.conditioning == "prepend",
        "upload_seconds": settings.upload_seconds,
        "max_duration": settings.max_duration,
        "max_seed": min(MAX_SEED, _LARGEST_SEED),
        "defaults": defaults,
    }

    async def describe(request: Request) -> Response:
        return JSONResponse(told, headers={"Cache-Control": "no-store"})

    async def convert(request: Request) -> Response:
        return await _encoded(request, service)

    async def chroma(request: Request) -> Response:
        return await _chroma(request, service)

    async def progress(request: Request) -> Response:
        ticket = service.named.get(request.path_params["name"])
        told = None  # a page may ask before its request has come: nothing is wrong
        if ticket is not None and not ticket.done:
            done, total = ticket.steps
            schedule = [cue.fields() for cue in ticket.schedule]
            place = ticket.position
            told = {"position": place, "steps": done, "total": total, "schedule": schedule}
        return JSONResponse(told, headers={"Cache-Control": "no-store"})

    async def switch(request: Request) -> Response:
        name = (await read_json(request, settings)).get("name")
        choice = next((each for each in about.choices if each.name == name), None)
        if choice is None or service.switch is None:
            raise invalid("name must be one of the models that the page lists", "name")
        if not choice.ready:
            raise invalid(f"{choice.name} is not here: {choice.way or choice.what}", "name")
        if service.draining is not None:
            raise HTTPError(409, service.draining, "not_now")
        service.switch(choice.name)
        return JSONResponse({"model": choice.name}, 202)

    return [
        *(_static(file) for file in files if file.suffix in _KINDS),
        Route("/app/about", describe),
        Route("/app/encode/{form}", convert, methods=["POST"]),
        Route("/app/chroma", chroma, methods=["POST"]),
        Route("/app/clips/{name}", progress),
        Route("/app/model", switch, methods=["POST"]),
    ]


def _static(file: Path) -> Route:
    path = "/" if file.name == "index.html" else f"/{file.name}"
    data, media_type = file.read_bytes(), _KINDS[file.suffix]

    async def answer(request: Request) -> Response:
        return Response(data, 200, _HEADERS, media_type)

    return Route(path, answer)


async def _encoded(request: Request, service: Service) -> Response:
    """A file of the samples in the body.

    The body is a line of JSON, which becomes the file's comment, and then samples as the stream
    sent them: int16, little-endian, channels interleaved, at the model's rate.
    """
    config, settings = service.config, service.settings
    form = request.path_params["form"]
    if form not in MEDIA_TYPES:
        raise invalid(f"the format must be one of {', '.join(MEDIA_TYPES)}, got {form[:20]!r}")
    most = 2 * config.audio_channels * round(settings.max_duration * config.sample_rate)
    body = await _bytes(request, most + _COMMENT_BYTES, settings)
    comment, _, data = body.partition(b"\n")
    parse(comment)
    if not data or len(data) % (2 * config.audio_channels):
        raise invalid("after the first line there must be whole samples, int16")
    samples = np.frombuffer(data, "<i2").reshape(-1, config.audio_channels).T

    def file() -> bytes:
        return encode(form, samples, config.sample_rate, comment=comment.decode())

    try:
        return Response(await asyncio.to_thread(file), 200, media_type=MEDIA_TYPES[form])
    except UserError as error:
        raise invalid(str(error)) from error


async def _chroma(request: Request, service: Service) -> Response:
    """The loudest pitch class of each moment, C being 0, as the model takes it.

    The body is a sound file; it is bounded as the file of a form is.
    """
    config, settings = service.config, service.settings
    if "melody" not in uploads.taken_by(config):
        raise invalid(f"{settings.model} takes no melody")
    with service.uploading():
        body = await _bytes(request, settings.upload_bytes, settings)
        try:
            heard = await asyncio.to_thread(uploads.heard, body, config, settings)
        except UserError as error:
            raise invalid(str(error), code="invalid_audio") from error
    return JSONResponse({"pitches": heard.tolist()})


async def _bytes(request: Request, limit: int, settings: Settings) -> bytes:
    """A body that is not JSON."""
    if request.headers.get("content-type") != "application/octet-stream":
        # A page of another site could send other types without asking.
        raise HTTPError(415, "send application/octet-stream", "media_type")
    return await read_bytes(request, limit, settings.body_seconds)
