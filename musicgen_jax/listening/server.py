"""The web server of a study. Python's own one: the study needs no further package.

Routes:
    GET  /, /app.js, /app.css     the page
    GET  /clips/NAME              a clip; understands Range
    GET  /api/study               title, scales, whether a token is needed
    POST /api/enter   {token}     a cookie for the other routes
    POST /api/raters  {name}      a new rater's key
    GET  /api/raters/KEY          what this rater hears, and what they have answered
    POST /api/answers {rater, clip, scale, score, heard}   200 once the score is on the disk

The page and its data never say which system made a clip.
"""

import contextlib
import errno
import hashlib
import hmac
import http.server
import json
import re
import socket
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import quote

from musicgen_jax.config.schema import parse_json
from musicgen_jax.errors import UserError, is_int, is_number
from musicgen_jax.listening import order, study
from musicgen_jax.listening.answers import MAX_NAME, Answer, Answers, Rater
from musicgen_jax.listening.study import HIGHEST, LOWEST, SCALES, Study

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MIN_TOKEN = 12  # characters

_MAX_BODY = 4096  # bytes
_MAX_CONNECTIONS = 512  # a browser opens six
_TIMEOUT = 30  # seconds of silence
_CHUNK = 1 << 18  # bytes
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # addresses hold raters' keys
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HOST = re.compile(r"(?:\[([0-9a-f:]+)\]|([\w.-]+))(?::\d+)?", re.IGNORECASE)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class StudyServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves one study until `shutdown`; it listens as soon as it is made.

    Args:
      found: the study.
      folder: where it is.
      answers: where scores go.
      host: the address to listen on.
      port: 0 for any free one.
      token: what raters must know; needed unless the host is a `LOOPBACK`.

    Raises:
      UserError: the address is taken or not ours, or the token is missing or short.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        found: Study,
        folder: Path,
        answers: Answers,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
    ):
        if token is None and host not in LOOPBACK:
            raise UserError(f"to listen on {host}, where others can come in, needs a token")
        if token is not None and len(token) < MIN_TOKEN:
            raise UserError(f"the token is too short: at least {MIN_TOKEN} characters")
        self.study, self.answers, self.token, self.host = found, answers, token, host
        self.cookie = f"listen-{found.id}"  # browsers keep one jar for all ports of a machine
        self.pass_key = hashlib.sha256(f"{found.id} {token}".encode()).hexdigest()
        clips = study.clips_folder(folder)
        self.files = {clip.file: clips / clip.file for item in found.items for clip in item.clips}
        self.files |= {item.melody: clips / item.melody for item in found.items if item.melody}
        page = Path(__file__).parent / "page"
        self.page = {
            path: ((page / name).read_bytes(), kind) for path, (name, kind) in _PAGE.items()
        }
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port} is in use: stop what uses it, or choose another with --port"
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

    @property
    def url(self) -> str:
        """The address of the page, with the token if there is one."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        name = f"[{name}]" if ":" in name else name
        word = f"#token={quote(self.token, safe='')}" if self.token else ""
        return f"http://{name}:{self.server_port}/{word}"

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


class _Refusal(Exception):
    """An answer other than 200, and why."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
    server: StudyServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "musicgen-jax", ""
    timeout = _TIMEOUT

    def log_message(self, *_: object) -> None:
        """Keeps quiet: addresses hold raters' keys."""

    def do_GET(self) -> None:
        self._answer(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method) -> None:
        try:
            self._check_host()
            method(self.path.partition("?")[0])
        except _Refusal as refusal:
            self.close_connection = True  # its body may not have been read
            self._send_json({"error": str(refusal)}, refusal.status)
        except UserError as error:  # the answers' file
            self.close_connection = True
            self._send_json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)

    # --- What there is ------------------------------------------------------------------------

    def _get(self, path: str) -> None:
        if path in self.server.page:
            content, kind = self.server.page[path]
            self._send(content, kind, {"Cache-Control": "no-cache"})
        elif path == "/favicon.ico":
            self._send(b"", "image/x-icon", {"Cache-Control": "max-age=86400"})
        elif path == "/api/study":
            self._send_json(self._about())
        elif path.startswith("/clips/"):
            self._check_pass()
            self._send_clip(path.removeprefix("/clips/"))
        elif path.startswith("/api/raters/"):
            self._check_pass()
            self._send_json(self._tasks(self._rater(path.removeprefix("/api/raters/"))))
        else:
            raise _Refusal(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self, path: str) -> None:
        body = self._body()
        if path == "/api/enter":
            token = self.server.token
            given = body.get("token")
            if token is not None and not (
                isinstance(given, str) and hmac.compare_digest(given.encode(), token.encode())
            ):
                raise _Refusal(HTTPStatus.FORBIDDEN, "this is not the study's token")
            cookie = (
                f"{self.server.cookie}={self.server.pass_key}; Path=/; HttpOnly; SameSite=Strict"
            )
            self._send_json({"entered": True}, headers={"Set-Cookie": cookie})
            return
        self._check_pass()
        if path == "/api/raters":
            name = body.get("name", "")
            if not isinstance(name, str) or len(name) > MAX_NAME:
                raise _Refusal(
                    HTTPStatus.BAD_REQUEST, f"a name is a text of at most {MAX_NAME} characters"
                )
            name = name.encode("utf-8", "replace").decode()
            name = "".join(c if c.isprintable() else " " for c in name)
            rater = self.server.answers.join(" ".join(name.split()))
            self._send_json({"rater": rater.key}, HTTPStatus.CREATED)
        elif path == "/api/answers":
            self.server.answers.record(self._read_answer(body))
            self._send_json({"saved": True})
        else:
            raise _Refusal(HTTPStatus.NOT_FOUND, "there is no such page")

    def _about(self) -> dict[str, Any]:
        found = self.server.study
        return {
            "study": found.id,
            "title": found.title,
            "pieces": found.per_rater,
            "clips": len(found.systems),
            "must_hear": found.must_hear,
            "scales": {
                name: {"label": SCALES[name].label, "question": SCALES[name].question}
                for name in found.scales
            },
            "token": self.server.token is not None,
        }

    def _tasks(self, rater: Rater) -> dict[str, Any]:
        found = self.server.study
        scores: dict[str, dict[str, int]] = {}
        for answer in self.server.answers.of(rater):
            scores.setdefault(answer.clip, {})[answer.scale] = answer.score
        return {
            "name": rater.name,
            "items": [
                {
                    "text": item.text,
                    "melody": item.melody,
                    "scales": item.scales,
                    "clips": [
                        {"clip": clip.file, "scores": scores.get(clip.file, {})}
                        for clip in order.clips_for(found, rater.number, item)
                    ],
                }
                for item in order.items_for(found, rater.number)
            ],
        }

    def _rater(self, key: Any) -> Rater:
        rater = self.server.answers.rater(key) if isinstance(key, str) else None
        if rater is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, "this study knows no such rater")
        return rater

    def _read_answer(self, body: dict[str, Any]) -> Answer:
        def refuse(reason: str) -> _Refusal:
            return _Refusal(HTTPStatus.BAD_REQUEST, reason)

        rater = self._rater(body.get("rater"))
        clip, scale = body.get("clip"), body.get("scale")
        asked = {
            one.file: item.scales
            for item in order.items_for(self.server.study, rater.number)
            for one in item.clips
        }
        if not isinstance(clip, str) or clip not in asked:
            raise refuse("this rater has no such clip")
        if not isinstance(scale, str) or scale not in asked[clip]:
            raise refuse("nothing of this kind is asked about this clip")
        score: Any = body.get("score")
        heard: Any = body.get("heard")
        if not is_int(score) or not LOWEST <= score <= HIGHEST:
            raise refuse(f"a score is a whole number from {LOWEST} to {HIGHEST}")
        if not is_number(heard) or not 0 <= heard <= 1:
            raise refuse("heard is a share from 0 to 1")
        return Answer(rater.number, clip, scale, score, float(heard), time.time())

    # --- Who may ask --------------------------------------------------------------------------

    def _check_host(self) -> None:
        """Without a token, only a page that was opened under a local name may ask.

        A foreign page could otherwise have its own name resolve to this machine.
        """
        if self.server.token is not None:
            return
        match = _HOST.fullmatch(self.headers.get("Host", ""))
        if match is None or (match[1] or match[2]) not in LOOPBACK:
            raise _Refusal(HTTPStatus.FORBIDDEN, "this study is open on this machine only")

    def _check_pass(self) -> None:
        if self.server.token is None:
            return
        jar = SimpleCookie()
        with contextlib.suppress(CookieError):
            jar.load(self.headers.get("Cookie", ""))
        found = jar.get(self.server.cookie)
        given = found.value if found else ""
        if not hmac.compare_digest(given.encode(), self.server.pass_key.encode()):
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "this study needs its token")

    # --- HTTP ---------------------------------------------------------------------------------

    def _body(self) -> dict[str, Any]:
        # A form of another site cannot send this type without asking first.
        if self.headers.get_content_type() != "application/json":
            raise _Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,9}", length):
            raise _Refusal(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if int(length) > _MAX_BODY:
            raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MAX_BODY} bytes")
        try:
            body = parse_json(self.rfile.read(int(length)))
        except ValueError as error:
            raise _Refusal(HTTPStatus.BAD_REQUEST, str(error)) from None
        if not isinstance(body, dict):
            raise _Refusal(HTTPStatus.BAD_REQUEST, "not a JSON object")
        return body

    def _send_json(
        self,
        value: dict[str, Any],
        status: HTTPStatus = HTTPStatus.OK,
        headers: dict[str, str] | None = None,
    ) -> None:
        extra = {"Cache-Control": "no-store", **(headers or {})}
        self._send(json.dumps(value).encode(), "application/json", extra, status)

    def _send(
        self,
        content: bytes,
        kind: str,
        headers: dict[str, str],
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
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

    def _send_clip(self, name: str) -> None:
        path = self.server.files.get(name)  # only known names: nothing of the path is followed
        if path is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, "there is no such clip")
        try:
            file = path.open("rb")
        except OSError as error:
            raise _Refusal(
                HTTPStatus.NOT_FOUND, f"cannot read the clip: {error.strerror}"
            ) from None
        with file:
            size = file.seek(0, 2)
            headers = {"Cache-Control": "private, max-age=86400", "Accept-Ranges": "bytes"}
            status, first, last = HTTPStatus.OK, 0, size - 1
            wanted = _parse_range(self.headers.get("Range"), size)
            if wanted is not None:
                status, (first, last) = HTTPStatus.PARTIAL_CONTENT, wanted
                if first > last:
                    headers["Content-Range"] = f"bytes */{size}"
                    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                    return self._send(b"", "audio/wav", headers, status)
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            self._start(status, "audio/wav", last - first + 1, headers)
            if self.command != "HEAD":
                file.seek(first)
                left = last - first + 1
                while left and (part := file.read(min(_CHUNK, left))):
                    self.wfile.write(part)
                    left -= len(part)


def _parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of one range; first > last if the file has none of it.

    None where the whole file is to be sent: no range, several, or what is not understood.
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
