"""How fast music is being made, and so how long it takes until a place in the queue is free."""

import math
import time

from musicgen_jax.serving.ticket import Ticket

_UNKNOWN = 10  # seconds, while nothing has been measured
_MOST = 3600
_MEMORY = 10.0  # seconds: older speeds hardly count


class Pace:
    """Watches tickets. Call `observe` about once a second.

    Args:
      slots: of the scheduler.
    """

    def __init__(self, slots: int):
        self._slots = slots
        self._open: list[Ticket] = []
        self._seen = 0  # steps of the tickets in `_open`
        self._time = time.monotonic()
        self._speed: float | None = None  # steps of one clip in a slot, per second
        self.steps = 0  # of all tickets ever
        self.seconds = 0.0  # of all music that was finished

    def add(self, ticket: Ticket) -> None:
        """Watches a ticket until it ends."""
        self._open.append(ticket)

    def observe(self) -> None:
        """Measures the speed since the last call."""
        now, running = time.monotonic(), self._running()
        done = sum(ticket.steps[0] for ticket in self._open)
        new, passed = done - self._seen, now - self._time
        self.steps += max(0, new)
        ended = [ticket for ticket in self._open if ticket.done]
        self.seconds += sum(
            ticket.request.frames / ticket.request.config.frame_rate
            for ticket in ended
            if ticket.steps[0] == ticket.steps[1] and not ticket.request.endless
        )
        self._open = [ticket for ticket in self._open if ticket not in ended]
        self._seen = sum(ticket.steps[0] for ticket in self._open)
        self._time = now
        if new > 0 and running and passed > 0:
            speed, weight = new / passed / running, 1 - math.exp(-passed / _MEMORY)
            self._speed = (
                speed if self._speed is None else self._speed + weight * (speed - self._speed)
            )

    @property
    def open(self) -> int:
        """Clips that wait or are being made."""
        return sum(not ticket.done for ticket in self._open)

    def retry_after(self) -> int:
        """Seconds until the first clip is finished and another may take its place."""
        left = [
            (ticket.steps[1] - ticket.steps[0]) * self._turns(ticket)
            for ticket in self._open
            if not ticket.done and ticket.steps[0] and not ticket.request.endless
        ]
        if self._speed is None or not left:
            return _UNKNOWN
        return max(1, min(_MOST, math.ceil(min(left) / self._speed)))

    def _turns(self, ticket: Ticket) -> float:
        """How much slower a piece of several windows is than a slot: it waits between them."""
        return max(1.0, self.open / self._slots) if len(ticket.request.windows) > 1 else 1.0

    def _running(self) -> int:
        return min(self._slots, sum(ticket.steps[0] > 0 for ticket in self._open))
