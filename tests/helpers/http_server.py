"""A server on loopback for tests, in a thread of this process, and a client without a library."""

import contextlib
import dataclasses
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from musicgen_jax import testing
from musicgen_jax.serving.http.run import MusicServer, bind
from musicgen_jax.serving.http.service import Service
from musicgen_jax.serving.http.settings import Settings

GENERATE, SPEECH, JOBS = "/v1/audio/generate", "/v1/audio/speech", "/v1/jobs"
PATIENCE = 60.0  # seconds
SMALL = dataclasses.replace(
    testing.DEBUG,
    lm=dataclasses.replace(testing.DEBUG.lm, num_layers=1),
    t5=dataclasses.replace(testing.DEBUG.t5, num_layers=1),
)


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # by lower-case names
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, of which it checks the shape."""
        assert self.headers["content-type"] == "application/json"
        error = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["message"]
        return error


class Server:
    """A running server."""

    def __init__(self, service: Service, port: int, http: MusicServer):
        self.service, self.port, self._http = service, port, http
        self.url = f"http://127.0.0.1:{port}"

    def stop(self, number: signal.Signals) -> None:
        """What a signal does."""
        self._http.handle_exit(number, None)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request; a body that is not bytes is sent as JSON."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())

    @contextlib.contextmanager
    def connect_and_send(self, method: str, path: str) -> Iterator[None]:
        """Sends a request, whose answer nobody reads."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path)
            yield

    def raw(self, data: bytes = b"") -> socket.socket:
        """A connection on which some bytes have been sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(data)
        return connection

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)


@contextlib.contextmanager
def serving(scheduler: Any, **settings: Any) -> Iterator[Server]:
    """A server for a scheduler. The end leaves the scheduler alone; see `Server.stop`."""
    service = Service(scheduler, Settings(**{"model": "debug", **settings}))
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        server = MusicServer(service)
        thread = threading.Thread(target=server.run, args=([taken],))
        thread.start()
        try:
            yield Server(service, taken.getsockname()[1], server)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()
