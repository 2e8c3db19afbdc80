"""The routes of the server."""

import asyncio
import contextlib
import functools

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from musicgen_jax.conditioning.text import ConditionAt
from musicgen_jax.serving.http import asked as asks
from musicgen_jax.serving.http import fields, metrics, openapi, page, sound, uploads
from musicgen_jax.serving.http.asked import Asked
from musicgen_jax.serving.http.body import media_type, read_form, read_json
from musicgen_jax.serving.http.errors import HTTPError
from musicgen_jax.serving.http.guard import Guard
from musicgen_jax.serving.http.jobs import Job, job_audio
from musicgen_jax.serving.http.listener import Listener
from musicgen_jax.serving.http.service import Service
from musicgen_jax.serving.ticket import Ticket


def application(service: Service) -> ASGIApp:
    """The whole server as an ASGI application."""
    routes = _Routes(service)
    router = Router(
        [
            Route("/v1/audio/generate", routes.generate, methods=["POST"]),
            Route("/v1/audio/speech", routes.speech, methods=["POST"]),
            Route("/v1/jobs", routes.new_job, methods=["POST"]),
            Route("/v1/jobs/{id}", routes.job, methods=["GET", "DELETE"]),
            Route("/v1/jobs/{id}/events", routes.job_events),
            Route("/v1/jobs/{id}/audio", routes.job_audio),
            Route("/v1/jobs/{id}/steer", routes.steer_job, methods=["POST"]),
            Route("/v1/audio/streams/{id}/steer", routes.steer_stream, methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/health", routes.health),
            Route("/ready", routes.ready),
            Route("/metrics", routes.metrics),
            *page.routes(service),
            Route("/openapi.json", routes.openapi),
        ],
        redirect_slashes=False,
        lifespan=service.watching,
    )
    if not service.settings.origins:
        return Guard(router, service)
    allowing = functools.partial(
        CORSMiddleware,
        allow_origins=service.settings.origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Range"],
        expose_headers=["X-Seed", "X-Program", "X-Settings", "X-Duration", "X-Sample-Rate",
                        "X-Channels", "X-Heard", "X-Stream-Id", "X-Request-Id", "Retry-After"],
    )  # fmt: skip
    return Guard(router, service, allowing)


class _Routes:
    """One method for each route."""

    def __init__(self, service: Service):
        self._service = service

    # --- Music --------------------------------------------------------------------------------

    async def generate(self, request: Request) -> Response:
        asked, condition_at = await self._asked(request, asks.GENERATE)
        return await self._music(request, asked, condition_at)

    async def speech(self, request: Request) -> Response:
        self._service.admit()
        body = await read_json(request, self._service.settings)
        asked = asks.SPEECH.read(body, self._service.config, self._service.settings)
        return await self._music(request, asked, None)

    async def _asked(self, request: Request, kind: asks.Kind) -> tuple[Asked, ConditionAt | None]:
        """The request in a body: JSON, or a form with a file."""
        service = self._service
        service.admit()
        if media_type(request) != "multipart/form-data":
            body = await read_json(request, service.settings)
            return kind.read(body, service.config, service.settings), None
        with service.uploading():
            texts, files = await read_form(request, service.settings)
            body = fields.from_form(texts, kind.fields)
            asked = kind.read(body, service.config, service.settings)
            return await asyncio.to_thread(
                uploads.with_files, service.scheduler, asked, files, service.settings
            )

    async def _music(
        self, request: Request, asked: Asked, condition_at: ConditionAt | None
    ) -> Response:
        """Audio for a client that waits for it."""
        service, model = self._service, self._service.settings.model
        request.scope["record"].asked = asked
        ticket = service.submit(asked, condition_at, deadline=service.settings.deadline)
        if name := request.headers.get("x-clip", "")[:64]:
            service.named[name] = ticket
        listener = Listener(ticket, request.receive)
        if asked.streamed:
            return await sound.streamed(asked, listener, model, service.streams)
        return await sound.whole_answer(asked, listener, model)

    # --- Jobs ---------------------------------------------------------------------------------

    async def new_job(self, request: Request) -> Response:
        service = self._service
        asked, condition_at = await self._asked(request, asks.JOB)
        request.scope["record"].asked = asked
        service.jobs.check_room()
        ticket = service.submit(asked, condition_at, deadline=None)
        job = service.jobs.begin(asked, ticket)
        location = {"Location": f"/v1/jobs/{job.id}"}
        return JSONResponse(job.public(), 202, location)

    async def job(self, request: Request) -> Response:
        job = self._job(request)
        if request.method == "DELETE":
            return JSONResponse(self._service.jobs.remove(job))
        return JSONResponse(job.public())

    async def job_events(self, request: Request) -> Response:
        return StreamingResponse(
            self._job(request).events(), 200, {"X-Accel-Buffering": "no"}, "text/event-stream"
        )

    async def job_audio(self, request: Request) -> Response:
        return job_audio(self._job(request), request.headers, fetched=request.method == "GET")

    # --- Changes ------------------------------------------------------------------------------

    async def steer_job(self, request: Request) -> Response:
        job = self._job(request)
        return await self._steered(request, job.id, job.ticket)

    async def steer_stream(self, request: Request) -> Response:
        id_ = request.path_params["id"]
        ticket = self._service.streams.get(id_)
        if ticket is None or ticket.done:
            raise HTTPError(404, "this stream has ended, or its id is wrong", "stream_not_found")
        return await self._steered(request, id_, ticket)

    async def _steered(self, request: Request, id_: str, ticket: Ticket) -> Response:
        """Changes music, and returns where the change takes effect, once that is known."""
        settings = self._service.settings
        cue = asks.steering(await read_json(request, settings), settings)
        answer = asyncio.wrap_future(ticket.steer(cue))
        # When a change that has waited is refused, the client may have left.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.steer_seconds):
                await asyncio.shield(answer)
        seconds = answer.result() if answer.done() else None
        rate = ticket.request.config.frame_rate
        said = {
            "id": id_,
            "object": "steering",
            "seconds": seconds,
            "frame": None if seconds is None else round(seconds * rate),
            "schedule": [cue.fields() for cue in ticket.schedule],
        }
        if settings.hear is not None and cue.description:
            said["heard"] = settings.hear(cue.description)
        return JSONResponse(said, 202 if seconds is None else 200)

    def _job(self, request: Request) -> Job:
        return self._service.jobs.find(request.path_params["id"])

    # --- The server ---------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self._service.settings.model:
            raise HTTPError(404, f"there is no model {name[:60]!r} here", "model_not_found")
        return JSONResponse(self._model())

    def _model(self) -> dict:
        service, config = self._service, self._service.config
        return {
            "id": service.settings.model,
            "object": "model",
            "created": service.created,
            "owned_by": "musicgen-jax",
            "sample_rate": config.sample_rate,
            "channels": config.audio_channels,
            "window": config.max_duration,
            "max_duration": service.settings.max_duration,
            "max_job_duration": service.settings.max_job_duration,
            "programs": [str(program) for program in service.scheduler.programs],
        }

    async def health(self, request: Request) -> Response:
        service = self._service
        if service.failed is not None:
            raise HTTPError(503, service.failed, "failed")
        status = "draining" if service.draining else "ok"
        return JSONResponse({"status": status, "model": service.settings.model})

    async def ready(self, request: Request) -> Response:
        service = self._service
        if (why := service.unready) is not None:
            again = {"Retry-After": str(service.pace.retry_after())}
            raise HTTPError(503, why, "not_ready", headers=again)
        return JSONResponse({"status": "ready", "model": service.settings.model})

    async def metrics(self, request: Request) -> Response:
        text = self._service.metrics.text()
        return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document(self._service.settings))
