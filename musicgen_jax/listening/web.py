"""HTTP on Python's own server: small bodies of JSON in; JSON, bytes and files with ranges out.

Nothing is trusted: bodies and connections are bounded, silent connections are closed, and every
answer tells the browser to load nothing from elsewhere.
"""

import errno
import http.server
import json
import re
import socket
import socketserver
import sys
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any

from musicgen_jax.config.schema import parse_json
from musicgen_jax.errors import UserError

_MAX_BODY = 4096  # bytes
_MAX_CONNECTIONS = 512  # a browser opens six
_TIMEOUT = 30  # seconds of silence
_CHUNK = 1 << 18  # bytes
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # addresses hold raters' keys
    "Cross-Origin-Resource-Policy": "same-origin",
}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Listens as soon as it is made; a thread for each connection.

    Args:
      host: the address to listen on.
      port: 0 for any free one.
      handler: answers the requests.

    Raises:
      UserError: the address is taken or not ours.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, handler: type["Handler"]):
        self.host = host
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port} is in use: stop the program that uses it, or choose another "
                    f"with --port"
                ) from None
            raise UserError(
                f"cannot listen on {host}, port {port}: {error.strerror or error}"
            ) from None
        except OverflowError:
            raise UserError(f"ports go from 0 to 65535, got {port}") from None

    def server_bind(self) -> None:
        """Binds without asking a name server who we are."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives the connection a thread, unless there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Runs in the connection's thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing about browsers that hang up; everything else is reported as usual."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Refusal(Exception):
    """An answer other than 200, and why."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests; a subclass supplies the answers, in `check`, `get` and `post`."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "musicgen-jax", ""
    timeout = _TIMEOUT

    def log_message(self, *_: object) -> None:
        """Keeps quiet: addresses hold raters' keys."""

    def do_GET(self) -> None:
        """Called by Python's server, for HEAD as well."""
        self._answer(self.get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Called by Python's server."""
        self._answer(lambda path: self.post(path, self._body()))

    def _answer(self, method) -> None:
        try:
            self.check()
            method(self.path.partition("?")[0])
        except Refusal as refusal:
            self.close_connection = True  # its body may not have been read
            self.send_json({"error": str(refusal)}, refusal.status)
        except UserError as error:  # the answers' file
            self.close_connection = True
            self.send_json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)

    # --- For subclasses -----------------------------------------------------------------------

    def check(self) -> None:
        """Raises a `Refusal` unless this request may be answered."""

    def get(self, path: str) -> None:
        """Answers GET and HEAD."""
        raise Refusal(HTTPStatus.NOT_FOUND, "there is no such page")

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Answers POST."""
        raise Refusal(HTTPStatus.NOT_FOUND, "there is no such page")

    def _body(self) -> dict[str, Any]:
        # A form of another site cannot send this type without asking first.
        if self.headers.get_content_type() != "application/json":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,9}", length):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if int(length) > _MAX_BODY:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MAX_BODY} bytes")
        try:
            body = parse_json(self.rfile.read(int(length)))
        except ValueError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from None
        if not isinstance(body, dict):
            raise Refusal(HTTPStatus.BAD_REQUEST, "not a JSON object")
        return body

    def send_json(
        self,
        value: dict[str, Any],
        status: HTTPStatus = HTTPStatus.OK,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Sends a JSON object, which no browser keeps."""
        extra = {"Cache-Control": "no-store", **(headers or {})}
        self.send(json.dumps(value).encode(), "application/json", extra, status)

    def send(
        self,
        content: bytes,
        kind: str,
        headers: dict[str, str],
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        """Sends bytes; `kind` is their media type."""
        self._start(status, kind, len(content), headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _start(self, status: HTTPStatus, kind: str, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def send_file(self, path: Path, kind: str, headers: dict[str, str]) -> None:
        """Sends a file, or the range of it that the request names."""
        try:
            file = path.open("rb")
        except OSError as error:
            raise Refusal(HTTPStatus.NOT_FOUND, f"cannot read it: {error.strerror}") from None
        with file:
            size = file.seek(0, 2)
            headers = {"Accept-Ranges": "bytes", **headers}
            status, first, last = HTTPStatus.OK, 0, size - 1
            wanted = _parse_range(self.headers.get("Range"), size)
            if wanted is not None:
                status, (first, last) = HTTPStatus.PARTIAL_CONTENT, wanted
                if first > last:
                    headers["Content-Range"] = f"bytes */{size}"
                    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                    return self.send(b"", kind, headers, status)
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            self._start(status, kind, last - first + 1, headers)
            if self.command != "HEAD":
                file.seek(first)
                left = last - first + 1
                while left and (part := file.read(min(_CHUNK, left))):
                    self.wfile.write(part)
                    left -= len(part)


def _parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of one range; first > last if the file has none of it.

    None if the whole file is to be sent: no range, several ranges, or one that is not understood.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match[0] == "bytes=-":
        return None
    start, end = match.groups()
    if not start:  # the last bytes
        return (max(0, size - int(end)), size - 1) if int(end) else (1, 0)
    if end and int(end) < int(start):
        return None
    first, last = int(start), min(int(end), size - 1) if end else size - 1
    return (first, last) if first < size else (1, 0)
