"""The state that all routes share: the scheduler and what the server knows about it."""

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from musicgen_jax.conditioning.text import ConditionAt
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import reason
from musicgen_jax.serving.http import uploads
from musicgen_jax.serving.http.asked import Asked
from musicgen_jax.serving.http.errors import HTTPError
from musicgen_jax.serving.http.jobs import Jobs
from musicgen_jax.serving.http.metrics import Metrics
from musicgen_jax.serving.http.pace import Pace
from musicgen_jax.serving.http.settings import Settings
from musicgen_jax.serving.scheduler import Scheduler
from musicgen_jax.serving.ticket import Ticket

_OBSERVE_SECONDS = 1.0


class Service:
    """A scheduler, and what the server knows about it.

    Args:
      scheduler: makes the music.
      settings: the server's limits.

    Attributes:
      draining: why no music is taken any more, or None.
      created: when the server began, in seconds since 1970.
      named: tickets that a client has named, by these names, while there are such tickets.
      switch: called with the name of another model that the server is to change to; None if it
        cannot.
    """

    def __init__(self, scheduler: Scheduler, settings: Settings):
        self.scheduler, self.settings = scheduler, settings
        self.pace = Pace(scheduler.slots)
        self.metrics = Metrics(scheduler, self.pace, settings.model)
        self.draining: str | None = None
        self._fault: str | None = None  # found before anybody asked for music
        self.named: weakref.WeakValueDictionary[str, Ticket] = weakref.WeakValueDictionary()
        self.switch: Callable[[str], object] | None = None
        self.jobs = Jobs(settings)
        self.streams: dict[str, Ticket] = {}  # that are being sent, by their secret ids
        self._uploads = 0
        self._warm = asyncio.Event()
        self.created = int(time.time())

    @property
    def failed(self) -> str | None:
        """Why the scheduler takes nothing any more although the server does, or None."""
        return self._fault or (self.scheduler.closing if self.draining is None else None)

    @property
    def unready(self) -> str | None:
        """Why a client should not come here now, or None."""
        if (why := self.draining or self.failed) is not None:
            return why
        ready = self.scheduler.ready.is_set() and self._warm.is_set()
        return None if ready else "the model is being compiled"

    @property
    def config(self) -> MusicGenConfig:
        """Of the model."""
        return self.scheduler.parts.config

    def admit(self) -> None:
        """Refuses a request before its body is read, if it would be refused afterwards anyway.

        Raises:
          HTTPError: 503 or 429.
        """
        again = {"Retry-After": str(self.pace.retry_after())}
        if self.draining is not None:
            raise HTTPError(503, self.draining, "shutting_down", headers=again)
        # A piece of several windows begins early and waits between them; so what counts is open.
        if self.pace.open >= self.scheduler.slots + self.settings.queue:
            raise HTTPError(
                429,
                f"{self.settings.queue} clips are waiting already: try again later",
                "queue_full",
                headers=again,
            )

    @contextlib.contextmanager
    def uploading(self) -> Iterator[None]:
        """A context in which a form is read and decoded; only a few at a time.

        Raises:
          HTTPError: 429.
        """
        if self._uploads >= self.settings.uploads:
            raise HTTPError(
                429,
                f"{self._uploads} files are being read already: try again in a moment",
                "too_many_uploads",
                headers={"Retry-After": "1"},
            )
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    def submit(
        self, asked: Asked, condition_at: ConditionAt | None = None, *, deadline: float | None
    ) -> Ticket:
        """Submits a request to the scheduler.

        Args:
          asked: the client's request.
          condition_at: as in `Scheduler.submit`.
          deadline: the server's own, in seconds.

        Raises:
          UserError: as `Scheduler.submit`.
        """
        if asked.request.endless:  # which is bounded by what is sent
            deadline = None
        given = [seconds for seconds in (asked.deadline, deadline) if seconds is not None]
        ticket = self.scheduler.submit(
            asked.request, condition_at, deadline=min(given, default=None)
        )
        self.pace.add(ticket)
        return ticket

    @contextlib.asynccontextmanager
    async def watching(self, _app: Any = None) -> AsyncIterator[None]:
        """While the server runs: measures the pace, and forgets old jobs."""
        tasks = [asyncio.create_task(each) for each in (self._watch(), self._warm_up())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def _watch(self) -> None:
        while True:
            self.pace.observe()
            self.jobs.forget_old()
            await asyncio.sleep(_OBSERVE_SECONDS)

    async def _warm_up(self) -> None:
        try:
            await asyncio.to_thread(uploads.warm_up, self.scheduler.parts)
        except Exception as error:
            self._fault = f"the model does not work: {reason(error)}"
        self._warm.set()
