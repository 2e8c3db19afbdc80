"""Work in threads, ahead of whoever takes the results."""

import threading
import time

import pytest

from musicgen_jax.runtime.ahead import cores, map_ahead


def test_results_come_in_order():
    def slow_at_first(item):
        time.sleep(0.05 if item == 0 else 0)
        return item * item

    assert list(map_ahead(slow_at_first, range(20), 3)) == [i * i for i in range(20)]
    assert cores() >= 1


def test_it_takes_items_only_as_it_needs_them():
    taken = []
    items = (taken.append(i) or i for i in range(100))
    made = map_ahead(lambda item: item, items, 2)
    assert not taken
    assert next(made) == 0
    assert len(taken) == 3
    made.close()
    assert len(taken) == 3


def test_an_error_comes_in_its_turn():
    def failing(item):
        if item == 2:
            raise KeyError(item)
        return item

    made = map_ahead(failing, range(9), 4)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(KeyError):
        next(made)


def test_heavy_items_are_worked_on_alone():
    running, most = [], []
    lock = threading.Lock()

    def heavy(item):
        with lock:
            running.append(item)
            most.append(sum(running))
        time.sleep(0.01)
        with lock:
            running.remove(item)
        return item

    items = [1, 1, 9, 2, 1, 5, 5, 1]
    assert list(map_ahead(heavy, items, 4, weigh=float, most=6)) == items
    assert max(most) == 9
    assert all(total <= 6 for total in most if total != 9)
