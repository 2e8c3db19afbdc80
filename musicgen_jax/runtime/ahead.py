"""Work in threads, a little ahead of whoever takes the results."""

import collections
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_ahead(
    function: Callable[[Item], Made],
    items: Iterable[Item],
    workers: int,
    weigh: Callable[[Item], float] = lambda item: 0,
    most: float = 0,
) -> Generator[Made, None, None]:
    """`map` in threads, with results in order; it works at most one result per thread ahead.

    Args:
      function: runs in a thread.
      items: its arguments, taken as they are needed.
      workers: number of threads.
      weigh: returns the weight of an item.
      most: largest total weight of the items that are worked on together; a heavier item is worked
        on alone.

    Raises:
      whatever `function` raises, in the turn of its item.
    """
    pool = ThreadPoolExecutor(workers)
    waiting: collections.deque[tuple[Future[Made], float]] = collections.deque()
    try:
        for item in items:
            weight = weigh(item)
            while waiting and weight + sum(each for _, each in waiting) > most:
                yield waiting.popleft()[0].result()
            waiting.append((pool.submit(function, item), weight))
            if len(waiting) > workers:
                yield waiting.popleft()[0].result()
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)
