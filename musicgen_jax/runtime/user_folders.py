"""The folders for a user's files."""

import os
from pathlib import Path


def user_cache() -> Path | None:
    """`musicgen-jax` in the user's cache folder; None if the user has no home folder.

    For example, a container can run without $HOME, as a user that the system does not know.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(cache).expanduser() / "musicgen-jax"
    except RuntimeError:
        return None
