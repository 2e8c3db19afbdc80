"""What there is under which address."""

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from musicgen_jax.serving.http import asked as asks
from musicgen_jax.serving.http import metrics, page, sound
from musicgen_jax.serving.http.asked import Asked
from musicgen_jax.serving.http.body import read_json
from musicgen_jax.serving.http.errors import HTTPError
from musicgen_jax.serving.http.guard import Guard
from musicgen_jax.serving.http.listener import Listener
from musicgen_jax.serving.http.service import Service


def application(service: Service) -> ASGIApp:
    """The whole server as an ASGI application."""
    routes = _Routes(service)
    router = Router(
        [
            Route("/v1/audio/generate", routes.generate, methods=["POST"]),
            Route("/v1/audio/speech", routes.speech, methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/health", routes.health),
            Route("/ready", routes.ready),
            Route("/metrics", routes.metrics),
            *page.routes(service),
        ],
        redirect_slashes=False,
        lifespan=service.watching,
    )
    app: ASGIApp = router
    if service.settings.origins:
        app = CORSMiddleware(
            app,
            allow_origins=service.settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Range"],
            expose_headers=["X-Seed", "X-Program", "X-Settings", "X-Duration", "X-Sample-Rate",
                            "X-Channels", "X-Request-Id", "Retry-After"],
        )  # fmt: skip
    return Guard(app, service)


class _Routes:
    """One method for each route."""

    def __init__(self, service: Service):
        self._service = service

    # --- Music --------------------------------------------------------------------------------

    async def generate(self, request: Request) -> Response:
        self._service.admit()
        body = await read_json(request, self._service.settings)
        return await self._music(
            request, asks.generate(body, self._service.config, self._service.settings)
        )

    async def speech(self, request: Request) -> Response:
        self._service.admit()
        body = await read_json(request, self._service.settings)
        return await self._music(
            request, asks.speech(body, self._service.config, self._service.settings)
        )

    async def _music(self, request: Request, asked: Asked) -> Response:
        """Audio for a client that waits for it."""
        service, model = self._service, self._service.settings.model
        request.scope["record"].asked = asked
        ticket = service.submit(asked, deadline=service.settings.deadline)
        listener = Listener(ticket, request.receive)
        if asked.streamed:
            return await sound.streamed(asked, listener, model)
        return await sound.whole_answer(asked, listener, model)

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
        why = service.draining or service.failed
        if why is None and not service.scheduler.ready.is_set():
            why = "the model is being compiled"
        if why is not None:
            again = {"Retry-After": str(service.pace.retry_after())}
            raise HTTPError(503, why, "not_ready", headers=again)
        return JSONResponse({"status": "ready", "model": service.settings.model})

    async def metrics(self, request: Request) -> Response:
        text = self._service.metrics.text()
        return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})
