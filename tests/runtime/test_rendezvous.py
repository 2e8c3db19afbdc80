"""Processes meet before they become one program, or all of them learn why not."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from musicgen_jax.errors import UserError
from musicgen_jax.runtime.rendezvous import meet
from tests.helpers.several_processes import free_port


def outcomes(*callers: tuple[int, int], seconds: float = 20.0) -> list[str]:
    """What each of (count, process) is told: "" if it may begin."""
    address = f"127.0.0.1:{free_port()}"

    def call(caller: tuple[int, int]) -> str:
        try:
            meet(address, *caller, seconds=seconds)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(callers)) as pool:
        return list(pool.map(call, callers))


def test_all_come():
    assert outcomes((3, 2), (3, 0), (3, 1)) == ["", "", ""]


def test_one_alone_needs_nobody():
    assert outcomes((1, 0)) == [""]


def test_the_port_is_free_afterwards():
    address = f"127.0.0.1:{free_port()}"
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda i: meet(address, 2, i, seconds=20), range(2)))


def test_they_count_differently():
    said = outcomes((2, 0), (3, 1))
    assert said == ["process 0 is one of 2, process 1 is one of 3"] * 2


def test_two_have_the_same_number():
    assert outcomes((3, 0), (3, 1), (3, 1)) == ["two processes have the number 1"] * 3


def test_one_does_not_come():
    assert outcomes((3, 0), (3, 1), seconds=1.0) == ["2 of 3 processes came within 1 s"] * 2


def test_the_first_does_not_come():
    (said,) = outcomes((2, 1), seconds=0.5)
    assert "process 0 did not answer at 127.0.0.1:" in said


def test_two_are_the_first():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"process 0 cannot listen on port {port}"):
            meet(f"127.0.0.1:{port}", 2, 0, seconds=1)


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:x", "host:0", "host:99999", ""])
def test_no_address(address):
    with pytest.raises(UserError, match="must be given as HOST:PORT"):
        meet(address, 2, 0, seconds=1)


@pytest.mark.parametrize(("count", "process"), [(2, 2), (2, -1), (0, 0)])
def test_no_such_process(count, process):
    with pytest.raises(UserError, match="the number of a process must be"):
        meet("127.0.0.1:1234", count, process, seconds=1)
