"""Wraps all routes: access control, the form of failures, and one log line for each request."""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from musicgen_jax.serving.http.asked import Asked
from musicgen_jax.serving.http.errors import ClientGone, HTTPError, as_http
from musicgen_jax.serving.http.service import Service
from musicgen_jax.serving.http.settings import Settings

LOG = logging.getLogger("musicgen_jax.serve")
_OPEN = ("/health", "/ready")  # probes have no token
_LEFT = 499  # in logs: the client closed the connection


class Record:
    """What becomes known about a request while it is answered.

    Attributes:
      id: of the request; the header X-Request-Id has it.
      status: of the answer, 0 if there is none.
      first_audio: when the first bytes of audio were sent, in seconds from the start.
      asked: the request for music, if it is one.
      error: code of the failure.
    """

    def __init__(self):
        self.id = secrets.token_hex(8)
        self.began = time.monotonic()
        self.status = self.sent = 0
        self.first_audio: float | None = None
        self.asked: Asked | None = None
        self.error: str | None = None

    @property
    def age(self) -> float:
        """Seconds since the request began."""
        return time.monotonic() - self.began


class Guard:
    """An ASGI application around another.

    Args:
      app: answers what is let in.
      service: what it shares.
      allowing: adds what browsers want to know before pages of other sites may read an answer,
        which may be a refusal.
    """

    def __init__(
        self, app: ASGIApp, service: Service, allowing: Callable[[ASGIApp], ASGIApp] = lambda a: a
    ):
        self._app, self._service, self._allowing = allowing(app), service, allowing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; other messages pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record()
        scope.update(record=record, app=self)  # with an app, the router raises its 404 and 405
        self._service.metrics.in_flight += 1
        try:
            await self._answer(record, scope, receive, send)
        finally:
            self._service.metrics.in_flight -= 1
            self._report(record, scope)

    async def _answer(self, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = record.id
                headers["X-Content-Type-Options"] = "nosniff"
            elif body := message.get("body"):
                if not record.sent and record.asked is not None and record.status == 200:
                    record.first_audio = record.age
                record.sent += len(body)
            try:
                async with asyncio.timeout(self._service.settings.send_seconds):
                    await send(message)
            except TimeoutError:
                raise ClientGone from None

        try:
            check(Headers(scope=scope), scope, self._service.settings)
            await self._app(scope, receive, noted)
        except Exception as error:
            failure = self._failure(error, scope)
            record.error = failure.code
            if isinstance(error, ClientGone):
                record.status = record.status or _LEFT
                _abort(scope)
            elif record.status:  # too late for another status: a half must not look whole
                _abort(scope)
            else:
                # What comes before a request from a page has an answer of its own.
                answer = failure.response()
                allowed = answer if scope["method"] == "OPTIONS" else self._allowing(answer)
                await allowed(scope, receive, noted)

    def _failure(self, error: Exception, scope: Scope) -> HTTPError:
        if isinstance(error, ClientGone):
            return HTTPError(_LEFT, "the client has left", "client_left")
        if isinstance(error, HTTPException):  # of the router
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid")
            message = f"there is no {scope['method']} {scope['path'][:100]} here"
            return HTTPError(error.status_code, message, code, headers=error.headers)
        again = self._service.pace.retry_after()
        failure = as_http(error, retry_after=again)
        if failure.status == 429:
            failure.headers.setdefault("Retry-After", str(again))
        if failure.status == 500:
            LOG.error("an error while answering %s", scope["record"].id, exc_info=error)
        return failure

    def _report(self, record: Record, scope: Scope) -> None:
        route = getattr(scope.get("route"), "path", "other")
        metrics = self._service.metrics
        metrics.requests.labels(route, str(record.status)).inc()
        metrics.seconds.labels(route).observe(record.age)
        line = {
            "event": "request",
            "id": record.id,
            "method": scope["method"][:20],
            "route": route,
            "status": record.status,
            "seconds": round(record.age, 3),
            "bytes": record.sent,
            "client": (scope.get("client") or ("",))[0],
        }
        if record.error is not None:
            line["error"] = record.error
        if (asked := record.asked) is not None:
            line |= {"duration": asked.seconds, "seed": asked.request.seed, "format": asked.form}
            if self._service.settings.log_prompts:
                line["prompt"] = asked.prompt
        if record.first_audio is not None:
            metrics.first_audio.observe(record.first_audio)
            line["first_audio"] = round(record.first_audio, 3)
        LOG.info("request", line)


def check(headers: Headers, scope: Scope, settings: Settings) -> None:
    """Refuses a request by its head.

    Raises:
      HTTPError: 421 for a Host that is not ours: so no web page can reach a server on this machine
        through a domain of its own. 403 for a page of another site, 401 for a wrong token.
    """
    if not is_host(headers.get("host", ""), settings):
        raise HTTPError(
            421, "this server has another name: see `musicgen-jax serve --allowed-host`", "host"
        )
    origin = headers.get("origin")
    if origin is not None and not _is_origin(origin, headers.get("host", ""), settings):
        raise HTTPError(
            403, "pages of this site may not use the server: see --cors-origin", "origin"
        )
    preflight = scope["method"] == "OPTIONS" and origin is not None
    if settings.token is None or scope["path"] in _OPEN or preflight:
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not _equal(given.strip(), settings.token):
        raise HTTPError(
            401,
            "send the header Authorization: Bearer TOKEN with the token of this server",
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def is_host(value: str, settings: Settings) -> bool:
    """Whether a Host header names this server."""
    try:
        name = urlsplit(f"//{value}").hostname or ""
    except ValueError:
        return False
    if name in settings.hosts:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or settings.any_address


def _is_origin(origin: str, host: str, settings: Settings) -> bool:
    try:
        return origin in settings.origins or urlsplit(origin).netloc == host
    except ValueError:
        return False


def _equal(given: str, token: str) -> bool:
    """Compares in constant time."""
    digests = (hashlib.sha256(text.encode(errors="replace")).digest() for text in (given, token))
    return hmac.compare_digest(*digests)


def _abort(scope: Scope) -> None:
    """Cuts the connection, if the server can."""
    if (abort := scope.get("state", {}).get("abort")) is not None:
        abort()
