"""Synchronises several processes that run the same program."""

import jax
import numpy as np
from jax.experimental import multihost_utils


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
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(letters))).decode("ascii")
