"""Processes meet at an address before they become one JAX program.

JAX ends a process with a stack trace if the others do not come in time, and hangs if they disagree
about their number. So they meet here first: each tells process 0 which one it is, and all learn
whether the program can start. Then the port is free for JAX's own service.
"""

import contextlib
import re
import socket
import time

from musicgen_jax.errors import UserError, one_line, reason

PATIENCE = 300.0  # seconds, the same as JAX's own timeout
_GREETING = re.compile(r"musicgen-jax (\d{1,9}) of (\d{1,9})")
_BEGIN = "begin"
_LONGEST = 1000  # bytes of a line
_AGAIN = 0.2  # seconds between two tries to connect
_ANSWER = 10.0  # seconds to wait for a line from a process that has connected


def meet(address: str, count: int, process: int, *, seconds: float = PATIENCE) -> None:
    """Waits until all processes have connected.

    Args:
      address: "host:port", where process 0 listens.
      count: of all processes.
      process: the number of this one, from 0.
      seconds: to wait for the others.

    Raises:
      UserError: in every process that has connected: the address or a number is wrong, the
        processes disagree about their number, two have the same number, or one did not come.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise UserError(f"the coordinator must be given as HOST:PORT, got {address!r:.80}")
    if count < 1 or not 0 <= process < count:
        raise UserError(
            f"the number of a process must be from 0 to {count - 1} for {count} processes, got "
            f"{process}"
        )
    if process:
        _join(host.strip("[]"), int(port), count, process, seconds)
    else:
        _wait(int(port), count, seconds)


def _wait(port: int, count: int, seconds: float) -> None:
    """In process 0: waits for the others, and tells them whether the program can start."""
    deadline = time.monotonic() + seconds
    others: dict[int, socket.socket] = {}
    fault = ""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(port))
        while len(others) < count - 1 and not fault:
            listener.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                other = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                came = len(others) + 1
                fault = f"{came} of {count} processes came within {seconds:g} s"
                break
            found = _GREETING.fullmatch(_line(other, _ANSWER))
            if found is None:  # not one of ours
                other.close()
                continue
            number, theirs = int(found[1]), int(found[2])
            if theirs != count:
                fault = f"process 0 is one of {count}, process {number} is one of {theirs}"
            elif number in others:
                fault = f"two processes have the number {number}"
            if others.setdefault(number, other) is not other:
                _tell(other, fault)
        for other in others.values():
            _tell(other, fault or _BEGIN)
        for other in others.values():  # they close first, so that the port is free at once
            _line(other, _ANSWER)
    if fault:
        raise UserError(fault)


def _join(host: str, port: int, count: int, process: int, seconds: float) -> None:
    """In the others: finds process 0, and waits for its answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            first = socket.create_connection((host, port), timeout=_ANSWER)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process 0 did not answer at {host}:{port} within {seconds:g} s: "
                    f"{reason(error)}"
                ) from None
            time.sleep(_AGAIN)
    with first:
        _tell(first, f"musicgen-jax {process} of {count}")
        answer = _line(first, seconds + _ANSWER)
    if answer != _BEGIN:
        raise UserError(answer or f"process 0 at {host}:{port} has ended")


def _listener(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(f"process 0 cannot listen on port {port}: {reason(error)}") from None


def _tell(other: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):  # a process that has ended says why itself
        other.sendall(line.encode() + b"\n")


def _line(other: socket.socket, seconds: float) -> str:
    """A line without its line end; "" if none comes."""
    deadline, found = time.monotonic() + seconds, b""
    with contextlib.suppress(OSError):
        while not found.endswith(b"\n") and len(found) < _LONGEST:
            other.settimeout(max(0.001, deadline - time.monotonic()))
            if not (more := other.recv(_LONGEST)):
                break
            found += more
    return one_line(found.decode("utf-8", "replace"))
