"""The line that a command prints when it must compile: what, how long, and what is kept."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def announced(say: Callable[[str], object]) -> Iterator[None]:
    """Gives `say` one line if something is compiled within the context, and none otherwise."""
    from musicgen_jax.runtime import compile_cache

    with compile_cache.announcing(lambda: say(_line())):
        yield


def _line() -> str:
    import jax

    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    kept = f"kept in {folder} for the next time" if folder else "not kept: the cache is off"
    return (
        "compiling for this model and this length: a few seconds for nano, longer for an "
        f"official model; {kept}"
    )
