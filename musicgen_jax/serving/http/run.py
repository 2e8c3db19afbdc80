"""The process: a socket that is opened first, a server on it, and an orderly end."""

import asyncio
import contextlib
import datetime
import ipaddress
import json
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from musicgen_jax.errors import UserError, reason
from musicgen_jax.serving.http.connection import connection_class
from musicgen_jax.serving.http.guard import LOG
from musicgen_jax.serving.http.routes import application
from musicgen_jax.serving.http.service import Service

_HEAD_BYTES = 32 << 10
_KEEP_ALIVE = 15  # seconds
_ANSWER, _FETCH = 30.0, 10.0  # seconds for the last answers, and for clients to fetch their jobs
_TICK = 0.05


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; taken before the model is loaded, so that a taken port shows at once.

    Raises:
      UserError: there is no such address, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        taken = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot listen on {host}: {reason(error)}") from error
    try:
        if sys.platform != "win32":
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(256)
    except OSError as error:
        taken.close()
        raise UserError(
            f"cannot listen on {host}:{port}: {reason(error)}; choose another --port"
        ) from error
    return taken


def is_loopback(taken: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(taken.getsockname()[0].partition("%")[0]).is_loopback


def url(taken: socket.socket) -> str:
    """Where the server is."""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class MusicServer(uvicorn.Server):
    """Serves until a signal, then takes nothing new and finishes the running clips.

    uvicorn would refuse connections from then on; this server answers 503, so that a load balancer
    notices. A second signal ends everything at once: `force_exit` is True then.

    Args:
      service: what is served.
      begun: called once requests are answered and signals are taken.
    """

    def __init__(self, service: Service, begun: Callable[[], object] = lambda: None):
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # our own log says it
        super().__init__(
            uvicorn.Config(
                application(service),
                http=connection_class(service.settings),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE,
                h11_max_incomplete_event_size=_HEAD_BYTES,
            )
        )
        self._service, self._begun = service, begun
        self._signals = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes the signals over; in another thread than the main one there are none."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Counts a signal."""
        self._signals += 1

    async def main_loop(self) -> None:
        """Runs until everything is finished after a signal."""
        self._begun()
        counter = 0
        while not self._signals:
            if await self.on_tick(counter):  # once a second it renews the header Date
                return
            counter += 1
            await asyncio.sleep(_TICK)
        service = self._service
        service.draining = service.draining or (
            "the server is about to stop: it finishes only the clips that it has"
        )
        LOG.info("draining", {"event": "draining"})
        drained = asyncio.create_task(asyncio.to_thread(service.scheduler.drain))
        while not drained.done() and self._signals < 2:
            await asyncio.sleep(_TICK)
        if self._signals > 1:
            self.force_exit = True
            await asyncio.to_thread(service.scheduler.close)
        if not self.force_exit:
            await _until(lambda: service.metrics.in_flight + service.jobs.unfinished == 0, _ANSWER)
            await _until(lambda: service.jobs.unfetched == 0, _FETCH)
        self.should_exit = True


async def _until(true: Callable[[], bool], seconds: float) -> None:
    """Waits, but not forever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(_TICK)


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """The log goes to stderr: an object of JSON on each line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(handler)


class _Lines(logging.Formatter):
    """Adds the time, in UTC, to a record that is JSON; makes JSON of any other."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        fields = record.args if isinstance(record.args, dict) else {"event": message}
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {"time": time.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        return json.dumps({**line, **fields})
