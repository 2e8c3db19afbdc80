"""One connection: limits for slow heads of requests, and for too many connections."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from musicgen_jax.serving.http.errors import error_json
from musicgen_jax.serving.http.settings import Settings

_REASONS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Connection(H11Protocol):
    """uvicorn's connection with bounds that uvicorn does not have.

    The head of a request must arrive within `header_seconds`, counted from the connection or from
    the last answer; so must the rest of a body that was refused. `settings` is set by a subclass.
    """

    settings: Settings

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request, or refuses the connection."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        self._patience: asyncio.TimerHandle | None = None
        if len(self.connections) > self.settings.connections:
            self._refuse(503, "too many connections: try again in a moment", "busy")
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Ends the waiting once the head of a request is there."""
        super().handle_events()
        if self._is_answering():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Waits for the next request."""
        self._stop_waiting()
        self._wait_for_head()  # first: the next request may be here already
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers a head that h11 cannot read."""
        self._refuse(400, "this is not HTTP, or its head is too long", "not_http")

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """There are none."""
        self._refuse(400, "there are no web sockets here", "not_http")

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._patience = self.loop.call_later(self.settings.header_seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _too_slow(self) -> None:
        if self.transport.is_closing() or self._is_answering():
            return
        if self.cycle is None:
            seconds = self.settings.header_seconds
            self._refuse(408, f"no request within {seconds:g} s", "too_slow")
        else:
            self.transport.abort()  # it has had an answer

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answers past h11, whose state may be broken, and closes."""
        if self.transport.is_closing():
            return
        body = error_json(status, message, code)
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def connection_class(settings: Settings) -> Any:
    """The class of connections for uvicorn."""
    return type("Connection", (Connection,), {"settings": settings})
