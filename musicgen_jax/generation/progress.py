"""Progress of a generation: a function of the caller, or a bar."""

import contextlib
from collections.abc import Callable, Iterator

Progress = bool | Callable[[int, int], None]


@contextlib.contextmanager
def progress_callback(progress: Progress) -> Iterator[Callable[[int, int], None] | None]:
    """What to call with (steps done, steps to do), None for nothing.

    Args:
      progress: True for a bar on stderr, or a function.
    """
    if callable(progress) or not progress:
        yield progress or None  # type: ignore[misc]
        return
    from tqdm import tqdm

    with tqdm(desc="generating", unit="step") as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update
