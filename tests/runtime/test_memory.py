"""Memory goes back to the system when it is no longer needed."""

import subprocess
import sys

import numpy as np
import pytest

from musicgen_jax.runtime import memory
from tests.helpers.imports import loaded_by

_THREAD = """
import sys, threading
from pathlib import Path
import numpy as np
from musicgen_jax.runtime import memory

if sys.argv[1] == "returning":
    memory.return_freed_memory()

def held():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

def work():
    # Something large is freed first: then glibc keeps what is smaller among its own.
    np.ones(3 << 20)
    arrays = [np.ones(1 << 19) for _ in range(10)]

before = held()
with memory.mapped():
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tells glibc")
def test_large_arrays_of_other_threads_go_back_to_the_system():
    def megabytes(how: str) -> float:
        run = subprocess.run([sys.executable, "-c", _THREAD, how], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return float(run.stdout)

    assert megabytes("returning") < 10
    assert megabytes("a library") > 20  # of 40: nothing is changed that holds for the process


def test_the_switch_needs_no_jax():
    code = "from musicgen_jax.runtime import memory; memory.return_freed_memory()"
    assert not loaded_by(code) & {"jax", "numpy"}


def test_bytes_of_a_tree():
    tree = {"a": np.zeros((3, 5), np.float32), "b": [np.zeros(7, np.int8)]}
    assert memory.nbytes(tree) == 67
