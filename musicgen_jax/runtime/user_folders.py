"""Where a user's files are kept."""

import os
from pathlib import Path


def user_cache() -> Path:
    """`musicgen-jax` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "musicgen-jax"
