"""Progress of a generation: a function of the caller, or a bar."""

import contextlib
import sys
from collections.abc import Callable, Iterator

Progress = bool | Callable[[int, int], None]


@contextlib.contextmanager
def progress_callback(progress: Progress) -> Iterator[Callable[[int, int], None] | None]:
    """The function to call with (steps done, total steps), or None.

    Args:
      progress: True for a bar on stderr, or a function.
    """
    if callable(progress) or not progress:
        yield progress or None  # type: ignore[misc]
        return
    if sys.stderr is None:  # a service: there is no terminal to draw on
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc="generating", unit="step") as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update
