"""The web server of a study. Python's own server: a study needs no extra package.

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
import hashlib
import hmac
import re
import socket
import time
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import quote

from musicgen_jax.errors import UserError, is_int, is_number
from musicgen_jax.listening import order, study
from musicgen_jax.listening.answers import MAX_NAME, Answer, Answers, Rater
from musicgen_jax.listening.study import HIGHEST, LOWEST, SCALES, Study
from musicgen_jax.listening.web import Handler, Refusal, Server

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MIN_TOKEN = 12  # characters

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
}
_HOST = re.compile(r"(?:\[([0-9a-f:]+)\]|([\w.-]+))(?::\d+)?", re.IGNORECASE)


class StudyServer(Server):
    """Serves one study until `shutdown`; it listens as soon as it is made.

    Args:
      found: the study.
      folder: where it is.
      answers: where scores go.
      host: the address to listen on.
      port: 0 for any free one.
      token: the secret that raters need; required unless the host is a `LOOPBACK`.

    Raises:
      UserError: the address is taken or not ours, or the token is missing or short.
    """

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
            raise UserError(f"listening on {host}, where others can get in, needs a token")
        if token is not None and len(token) < MIN_TOKEN:
            raise UserError(f"the token is too short: at least {MIN_TOKEN} characters")
        self.study, self.answers, self.token = found, answers, token
        self.cookie = f"listen-{found.id}"  # browsers keep one jar for all ports of a machine
        self.pass_key = hashlib.sha256(f"{found.id} {token}".encode()).hexdigest()
        clips = study.clips_folder(folder)
        self.files = {clip.file: clips / clip.file for item in found.items for clip in item.clips}
        self.files |= {item.melody: clips / item.melody for item in found.items if item.melody}
        page = Path(__file__).parent / "page"
        self.page = {
            path: ((page / name).read_bytes(), kind) for path, (name, kind) in _PAGE.items()
        }
        super().__init__(host, port, _StudyHandler)

    @property
    def url(self) -> str:
        """The address of the page, with the token if there is one."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        name = f"[{name}]" if ":" in name else name
        word = f"#token={quote(self.token, safe='')}" if self.token else ""
        return f"http://{name}:{self.server_port}/{word}"


class _StudyHandler(Handler):
    server: StudyServer  # type: ignore[assignment]

    # --- What there is ------------------------------------------------------------------------

    def get(self, path: str) -> None:
        if path in self.server.page:
            content, kind = self.server.page[path]
            self.send(content, kind, {"Cache-Control": "no-cache"})
        elif path == "/favicon.ico":
            self.send(b"", "image/x-icon", {"Cache-Control": "max-age=86400"})
        elif path == "/api/study":
            self.send_json(self._about())
        elif path.startswith("/clips/"):
            self._check_pass()
            file = self.server.files.get(path.removeprefix("/clips/"))
            if file is None:  # only known names: nothing of the path is followed
                raise Refusal(HTTPStatus.NOT_FOUND, "there is no such clip")
            self.send_file(file, "audio/wav", {"Cache-Control": "private, max-age=86400"})
        elif path.startswith("/api/raters/"):
            self._check_pass()
            self.send_json(self._tasks(self._rater(path.removeprefix("/api/raters/"))))
        else:
            super().get(path)

    def post(self, path: str, body: dict[str, Any]) -> None:
        if path == "/api/enter":
            token = self.server.token
            given = body.get("token")
            if token is not None and not (isinstance(given, str) and _same(given, token)):
                raise Refusal(HTTPStatus.FORBIDDEN, "this is not the study's token")
            cookie = (
                f"{self.server.cookie}={self.server.pass_key}; Path=/; HttpOnly; SameSite=Strict"
            )
            self.send_json({"entered": True}, headers={"Set-Cookie": cookie})
            return
        self._check_pass()
        if path == "/api/raters":
            name = body.get("name", "")
            if not isinstance(name, str) or len(name) > MAX_NAME:
                raise Refusal(
                    HTTPStatus.BAD_REQUEST,
                    f"a name must be a text of at most {MAX_NAME} characters",
                )
            name = name.encode("utf-8", "replace").decode()
            name = "".join(c if c.isprintable() else " " for c in name)
            rater = self.server.answers.join(" ".join(name.split()))
            self.send_json({"rater": rater.key}, HTTPStatus.CREATED)
        elif path == "/api/answers":
            self.server.answers.record(self._read_answer(body))
            self.send_json({"saved": True})
        else:
            super().post(path, body)

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
        rater = self.server.answers.rater(key) if isinstance(key, str) and key.isascii() else None
        if rater is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "this study has no such rater")
        return rater

    def _read_answer(self, body: dict[str, Any]) -> Answer:
        def refuse(reason: str) -> Refusal:
            return Refusal(HTTPStatus.BAD_REQUEST, reason)

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
            raise refuse("this study does not ask that about this clip")
        score: Any = body.get("score")
        heard: Any = body.get("heard")
        if not is_int(score) or not LOWEST <= score <= HIGHEST:
            raise refuse(f"a score must be a whole number from {LOWEST} to {HIGHEST}")
        if not is_number(heard) or not 0 <= heard <= 1:
            raise refuse("heard must be a share from 0 to 1")
        return Answer(rater.number, clip, scale, score, float(heard), time.time())

    # --- Who may ask --------------------------------------------------------------------------

    def check(self) -> None:
        """Without a token, only a page that was opened under a local name may ask.

        A foreign page could otherwise have its own name resolve to this machine.
        """
        if self.server.token is not None:
            return
        match = _HOST.fullmatch(self.headers.get("Host", ""))
        if match is None or (match[1] or match[2]) not in LOOPBACK:
            raise Refusal(HTTPStatus.FORBIDDEN, "this study is open on this machine only")

    def _check_pass(self) -> None:
        if self.server.token is None:
            return
        jar = SimpleCookie()
        with contextlib.suppress(CookieError):
            jar.load(self.headers.get("Cookie", ""))
        found = jar.get(self.server.cookie)
        given = found.value if found else ""
        if not _same(given, self.server.pass_key):
            raise Refusal(HTTPStatus.UNAUTHORIZED, "this study needs its token")


def _same(given: str, secret: str) -> bool:
    """Whether two texts are equal, compared in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())
