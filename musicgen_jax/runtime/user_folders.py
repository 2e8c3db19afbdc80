"""Where a user's files are kept."""

import os
from pathlib import Path


def user_cache() -> Path | None:
    """`musicgen-jax` in the user's cache folder; None if the user has no home folder.

    A container may run as a user that the system does not know, without $HOME.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(cache).expanduser() / "musicgen-jax"
    except RuntimeError:
        return None
