"""A ticket for asyncio: blocks of audio that can be awaited, and a client that may leave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType

import numpy as np
from starlette.types import Receive

from musicgen_jax.generation.piece import GenerationOutput
from musicgen_jax.serving.http.errors import ClientGone
from musicgen_jax.serving.ticket import Ticket


class Listener:
    """Waits for the music of a ticket. If the block ends early, the music is cancelled.

    Args:
      ticket: of the scheduler.
      receive: reports that the client has left; None if nobody has to stay for the music.
    """

    def __init__(self, ticket: Ticket, receive: Receive | None = None):
        self.ticket = ticket
        self._receive = receive
        self._changed = asyncio.Event()
        self._gone = False
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Listener":
        loop = asyncio.get_running_loop()

        def changed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and so has the server
                loop.call_soon_threadsafe(self._changed.set)

        self.ticket.listen(changed)
        if self._receive is not None:
            self._watch = asyncio.create_task(self._until_gone(self._receive))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self.ticket.cancel()  # does nothing if it is finished

    async def blocks(self) -> AsyncIterator[np.ndarray]:
        """Audio as it is made, float32 [C, W].

        Raises:
          ClientGone: the client has left.
          Exception: as `Ticket.result`.
        """
        given = 0
        while True:
            done = self.ticket.done  # asked before the blocks: afterwards there are no more
            for block in self.ticket.blocks(given):
                self._check()
                given += 1
                yield block
            self._check()
            if done:
                self.ticket.result(0)  # raises what went wrong
                return
            await self.change()

    async def result(self) -> GenerationOutput:
        """The whole music.

        Raises:
          Exception: as `blocks`.
        """
        while not self.ticket.done:
            await self.change()
        self._check()
        return self.ticket.result(0)

    async def change(self) -> None:
        """Waits for the next block or the end."""
        await self._changed.wait()
        self._changed.clear()
        self._check()

    def _check(self) -> None:
        if self._gone:
            raise ClientGone

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self.ticket.cancel()  # now: whoever sends may be waiting for another reason
        self._changed.set()
