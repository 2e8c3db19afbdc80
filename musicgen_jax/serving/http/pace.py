"""How fast music is made just now, and so how long until a place in the queue is free."""

import math
import time

from musicgen_jax.serving.ticket import Ticket

_UNKNOWN = 10  # seconds, while nothing has been measured
_MOST = 3600
_MEMORY = 10.0  # seconds: older speeds hardly count


class Pace:
    """Watches tickets. Call `observe` about once a second."""

    def __init__(self):
        self._open: list[Ticket] = []
        self._seen = 0  # steps of the tickets in `_open`
        self._finished = 0  # steps of tickets that have ended since
        self._time = time.monotonic()
        self._speed: float | None = None  # steps of one clip in a slot, per second
        self.steps = 0  # of all tickets ever

    def add(self, ticket: Ticket) -> None:
        """Watches a ticket until it ends."""
        self._open.append(ticket)

    def observe(self) -> None:
        """Measures the speed since the last call."""
        now, running = time.monotonic(), self._running()
        done = sum(ticket.steps[0] for ticket in self._open)
        new, passed = done - self._seen, now - self._time
        self.steps += max(0, new)
        self._open = [ticket for ticket in self._open if not ticket.done]
        self._seen = sum(ticket.steps[0] for ticket in self._open)
        self._time = now
        if new > 0 and running and passed > 0:
            speed, weight = new / passed / running, 1 - math.exp(-passed / _MEMORY)
            self._speed = (
                speed if self._speed is None else self._speed + weight * (speed - self._speed)
            )

    def retry_after(self) -> int:
        """Seconds until the first clip that is being made leaves its slot to one that waits."""
        left = [
            ticket.steps[1] - ticket.steps[0]
            for ticket in self._open
            if not ticket.done and not ticket.position
        ]
        if self._speed is None or not left:
            return _UNKNOWN
        return max(1, min(_MOST, math.ceil(min(left) / self._speed)))

    def _running(self) -> int:
        return sum(ticket.steps[0] > 0 and not ticket.position for ticket in self._open)
