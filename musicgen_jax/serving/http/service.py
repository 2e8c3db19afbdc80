"""What all routes share: the scheduler and what is known about it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from musicgen_jax.config import MusicGenConfig
from musicgen_jax.serving.http.asked import Asked
from musicgen_jax.serving.http.errors import HTTPError
from musicgen_jax.serving.http.metrics import Metrics
from musicgen_jax.serving.http.pace import Pace
from musicgen_jax.serving.http.settings import Settings
from musicgen_jax.serving.scheduler import Scheduler
from musicgen_jax.serving.ticket import Closing, Ticket

_OBSERVE_SECONDS = 1.0


class Service:
    """A scheduler, and what the server knows about it.

    Args:
      scheduler: makes the music.
      settings: what is allowed.

    Attributes:
      draining: why no music is taken any more, or None.
      failed: why the scheduler takes nothing any more although the server does, or None.
      created: when the server began, in seconds since 1970.
    """

    def __init__(self, scheduler: Scheduler, settings: Settings):
        self.scheduler, self.settings = scheduler, settings
        self.pace = Pace()
        self.metrics = Metrics(scheduler, self.pace, settings.model)
        self.draining: str | None = None
        self.failed: str | None = None
        self.created = int(time.time())

    @property
    def config(self) -> MusicGenConfig:
        """Of the model."""
        return self.scheduler.parts.config

    def admit(self) -> None:
        """Refuses before a body is read what would be refused after it.

        Raises:
          HTTPError: 503 or 429.
        """
        again = {"Retry-After": str(self.pace.retry_after())}
        if self.draining is not None:
            raise HTTPError(503, self.draining, "shutting_down", headers=again)
        if self.scheduler.waiting >= self.settings.queue:
            raise HTTPError(
                429,
                f"{self.settings.queue} clips are waiting already: try again later",
                "queue_full",
                headers=again,
            )

    def submit(self, asked: Asked, *, deadline: float | None) -> Ticket:
        """Asks the scheduler; `deadline` is the server's own, in seconds.

        Raises:
          UserError: as `Scheduler.submit`.
        """
        given = [seconds for seconds in (asked.deadline, deadline) if seconds is not None]
        try:
            ticket = self.scheduler.submit(asked.request, deadline=min(given, default=None))
        except Closing as error:
            if self.draining is None:
                self.failed = str(error)
            raise
        self.pace.add(ticket)
        return ticket

    @contextlib.asynccontextmanager
    async def watching(self, _app: Any = None) -> AsyncIterator[None]:
        """While the server runs: measures the pace."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self) -> None:
        while True:
            self.pace.observe()
            await asyncio.sleep(_OBSERVE_SECONDS)
