"""Synchronises several processes that run the same program."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from musicgen_jax.errors import UserError, reason

Result = TypeVar("Result")
_REASON = 2000  # bytes of an error that are sent to the others


def several() -> bool:
    """Whether this process is one of several. Starts no device if it is surely alone."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def barrier(name: str) -> None:
    """Waits until every process has reached this barrier; does nothing with one process.

    Args:
      name: name of the barrier, for the error message if processes wait at different ones.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_first(text: str, length: int) -> str:
    """Sends the first process's text to every process.

    Args:
      text: ASCII text; used in the first process and ignored in the others.
      length: length of the text; must be the same in all processes.
    """
    if jax.process_count() == 1:
        return text
    letters = np.frombuffer(text.encode("ascii").ljust(length), np.uint8)
    if jax.process_index():
        letters = np.zeros(length, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(letters))).decode("ascii")


def together(action: Callable[[], Result]) -> Result:
    """Does something in every process. If it fails in one, no process continues.

    Args:
      action: must not wait for other processes, which may have failed.

    Returns:
      what it returned in this process.

    Raises:
      UserError: it failed in another process; the message says in which.
      Exception: it failed in this process.
    """
    if not several():
        return action()
    result, own, said = None, None, ""
    try:
        result = action()
    except Exception as error:
        own = error
        said = str(error) if isinstance(error, UserError) else reason(error)
    letters = np.frombuffer(said.encode()[:_REASON].ljust(_REASON, b"\0"), np.uint8)
    every = np.asarray(multihost_utils.process_allgather(letters))
    if own is not None:
        raise own
    for process, each in enumerate(every):
        if why := bytes(each).rstrip(b"\0").decode("utf-8", "replace"):
            raise UserError(why if process == 0 else f"process {process}: {why}")
    return result  # type: ignore[return-value]


def in_first(action: Callable[[], Result]) -> Result | None:
    """Does something in the first process alone; see `together`.

    Returns:
      what it returned there, and None in the others.
    """
    return together(lambda: None if several() and jax.process_index() else action())


def told_by_first(make: Callable[[], Any]) -> Any:
    """Makes a value in the first process and sends it to all processes.

    Args:
      make: returns JSON types; called only in the first process.

    Raises:
      UserError: as `together`.
    """
    if not several():
        return make()
    text = in_first(lambda: json.dumps(make())) or ""
    length = int(from_first(f"{len(text):12d}", 12))
    return json.loads(from_first(text, length))


def part() -> None:
    """Ends the common program in all processes. Each may continue alone, on its own devices."""
    if several():
        jax.distributed.shutdown()
