"""Long pieces for which no connection stays open: started, polled, and fetched later.

Everything is kept in memory, within bounds: when the process ends, nothing is left.
"""

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response

from musicgen_jax.audio.encoding import MEDIA_TYPES
from musicgen_jax.serving.http import sound
from musicgen_jax.serving.http.asked import Asked
from musicgen_jax.serving.http.errors import HTTPError, as_http
from musicgen_jax.serving.http.listener import Listener
from musicgen_jax.serving.http.settings import Settings
from musicgen_jax.serving.ticket import Cancelled, Ticket

_LOOK_SECONDS = 0.5  # between two events
_HEARTBEAT_SECONDS = 15.0  # proxies close connections that are silent
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Job:
    """One piece. Its status is queued, in_progress, completed, failed or cancelled.

    Attributes:
      id: a secret: whoever has it can fetch the music.
      audio: the file, once the job is completed.
      error: why there will be no audio.
      fetched: whether it has been fetched as a whole.
    """

    def __init__(self, asked: Asked, ticket: Ticket, model: str):
        self.id = f"job_{secrets.token_urlsafe(18)}"
        self.asked, self.created = asked, int(time.time())
        self.headers = sound.headers(asked, ticket, model)
        self.audio: bytes | None = None
        self.fetched = False
        self.finished: float | None = None  # time.monotonic()
        self.error: HTTPError | None = None
        self._ticket: Ticket | None = ticket  # until it has ended: it holds the samples
        self._steps = ticket.steps
        self._model = model
        self._ended = asyncio.Event()
        self._task = asyncio.create_task(self._run(ticket))

    @property
    def status(self) -> str:
        """The progress of the job."""
        if self.audio is not None:
            return "completed"
        if self.error is not None:
            return "cancelled" if self.error.code == "cancelled" else "failed"
        return "queued" if self._ticket is not None and not self.steps[0] else "in_progress"

    @property
    def steps(self) -> tuple[int, int]:
        """Steps of the language model: done, and all."""
        if self._ticket is not None:
            self._steps = self._ticket.steps
        return self._steps

    def public(self) -> dict[str, Any]:
        """What a client sees."""
        done, total = self.steps
        error = self.error
        return {
            "id": self.id,
            "object": "job",
            "status": self.status,
            "created_at": self.created,
            "model": self._model,
            "position": self._ticket.position if self._ticket is not None else 0,
            "progress": {"steps": done, "total": total},
            "duration": self.asked.seconds,
            "seed": self.asked.request.seed,
            "program": self.headers["X-Program"],
            "response_format": self.asked.form,
            "bytes": None if self.audio is None else len(self.audio),
            "error": error and {"message": error.message, "code": error.code},
        }

    async def events(self) -> AsyncIterator[bytes]:
        """What a client sees, after each change until the end."""
        sent, spoken = None, time.monotonic()
        while True:
            ended, now = self._ended.is_set(), self.public()
            if now != sent:
                sent, spoken = now, time.monotonic()
                yield sound.event(now, now["status"] if ended else "progress")
            elif time.monotonic() - spoken > _HEARTBEAT_SECONDS:
                spoken = time.monotonic()
                yield b": still here\n\n"
            if ended:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._ended.wait()

    @property
    def ticket(self) -> Ticket:
        """The music while it is made.

        Raises:
          HTTPError: 409, it has ended.
        """
        if self._ticket is None:
            raise HTTPError(409, "the job has ended: there is nothing left to change", "finished")
        return self._ticket

    def cancel(self) -> None:
        """Cancels the music, if it is not finished."""
        if self._ticket is not None:
            self._ticket.cancel()

    async def _run(self, ticket: Ticket) -> None:
        audio = error = None
        try:
            async with Listener(ticket) as listener:
                output = await listener.result()
                audio = await asyncio.to_thread(
                    sound.whole, self.asked, ticket, output.audio[0], self._model
                )
        except Exception as failure:
            error = as_http(failure, retry_after=0)
            if isinstance(failure, Cancelled):
                error = HTTPError(409, "the job was cancelled", "cancelled")
        self._steps = ticket.steps
        self._ticket, self.audio, self.error = None, audio, error
        self.finished = time.monotonic()
        self._ended.set()


class Jobs:
    """All jobs of a server, the finished ones within `job_bytes` and `job_seconds`."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._jobs: dict[str, Job] = {}  # the oldest first

    def begin(self, asked: Asked, ticket: Ticket) -> Job:
        """A job for a ticket. The oldest finished one is forgotten if there are too many."""
        if len(self._jobs) >= self._settings.jobs and (finished := self._finished()):
            del self._jobs[finished[0][1].id]
        job = Job(asked, ticket, self._settings.model)
        self._jobs[job.id] = job
        return job

    def find(self, id_: str) -> Job:
        """The job of that id.

        Raises:
          HTTPError: 404.
        """
        if (job := self._jobs.get(id_)) is None:
            raise HTTPError(
                404,
                "there is no such job: a finished job is kept for at most "
                f"{self._settings.job_seconds:g} s",
                "job_not_found",
            )
        return job

    def remove(self, job: Job) -> dict[str, Any]:
        """Cancels a job and forgets it; returns what a client sees last."""
        job.cancel()
        self._jobs.pop(job.id, None)
        last = job.public()
        return last if job.finished is not None else {**last, "status": "cancelled"}

    def check_room(self) -> None:
        """Whether another job can begin.

        Raises:
          HTTPError: 429, if there are too many and all are still being made.
        """
        if len(self._jobs) >= self._settings.jobs and not self._finished():
            raise HTTPError(429, "too many jobs: try again later", "too_many_jobs")

    def _finished(self) -> list[tuple[float, Job]]:
        """When each finished job finished, and the job; those that began first come first."""
        return [(job.finished, job) for job in self._jobs.values() if job.finished is not None]

    def forget_old(self) -> None:
        """Forgets finished jobs that are too old, or the oldest of too many bytes.

        The one that finished last stays, however large it is: nobody has had the time to fetch it.
        """
        now, newer = time.monotonic(), 0
        for finished, job in sorted(self._finished(), key=lambda each: each[0], reverse=True):
            size = len(job.audio or b"")
            too_many = newer > 0 and newer + size > self._settings.job_bytes
            newer += size
            if too_many or now - finished > self._settings.job_seconds:
                del self._jobs[job.id]

    @property
    def unfinished(self) -> int:
        """Jobs that have not ended."""
        return sum(job.finished is None for job in self._jobs.values())

    @property
    def unfetched(self) -> int:
        """Completed jobs whose music nobody has fetched."""
        return sum(job.audio is not None and not job.fetched for job in self._jobs.values())


def job_audio(job: Job, headers: Mapping[str, str], *, fetched: bool) -> Response:
    """The file of a job, or the part of it that the header Range asks for.

    Args:
      job: whose file.
      headers: of the request.
      fetched: whether the client gets it, and not its head alone, which has no parts.

    Raises:
      HTTPError: 409 if it is not finished or went wrong, 416 if there is no such part.
    """
    if job.audio is None:
        if job.error is not None:
            raise HTTPError(409, f"the job has no music: {job.error.message}", job.error.code)
        raise HTTPError(409, "the job is not finished: look at its events", "not_finished")
    data, etag = job.audio, f'"{job.id}"'
    head = {**job.headers, "Accept-Ranges": "bytes", "ETag": etag}
    media_type = MEDIA_TYPES[job.asked.form]
    asked = _RANGE.fullmatch(headers.get("range", "") if fetched else "")
    if asked is None or not any(asked.groups()) or headers.get("if-range", etag) != etag:
        job.fetched |= fetched
        return Response(data, 200, head, media_type)
    if asked[1]:
        first, last = int(asked[1]), int(asked[2] or len(data))
    else:  # the last so many bytes
        first, last = max(0, len(data) - int(asked[2])), len(data)
    last = min(last, len(data) - 1)
    if first > last:
        raise HTTPError(
            416,
            f"the file has {len(data)} bytes",
            "no_such_range",
            headers={"Content-Range": f"bytes */{len(data)}"},
        )
    job.fetched |= last == len(data) - 1
    head["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return Response(data[first : last + 1], 206, head, media_type)
