"""Copies of shards with one file spoilt, and what is said of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from musicgen_jax.errors import UserError


def complaint(
    folder: Path,
    name: str,
    change: Callable[[bytes], bytes | None],
    read: Callable[[Path], object],
    scratch: Path,
) -> str:
    """The one line about a file that was changed; it names the file.

    Args:
      folder: of the shards, which stays as it is.
      name: of the file.
      change: what becomes of its bytes; None removes it.
      read: opens a folder and reads so much of it that the file is needed.
      scratch: a folder for the copy.
    """
    copy = scratch / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    data = change((copy / name).read_bytes())
    (copy / name).unlink() if data is None else (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=name) as caught:
        read(copy)
    assert "\n" not in str(caught.value)
    return str(caught.value)
