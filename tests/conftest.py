"""Every test runs on the CPU, in full float32, with eight fake devices."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.compilation import quick_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MUSICGEN_JAX_CACHE"] = "off"  # a test must compile what it tests
os.environ["XLA_FLAGS"] = quick_flags()

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

# Tracing makes objects by the hundred thousand; looking through all of JAX for garbage at each of
# Python's usual occasions takes a fifth of the suite's time.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 10, 10)

_MAPS = Path("/proc/self/maps")  # on Linux


@pytest.fixture(scope="module", autouse=True)
def _room_for_compiled_code() -> Iterator[None]:
    """Frees what XLA has compiled before it is too much.

    Linux gives a process 65,530 stretches of memory (`vm.max_map_count`), of which each compiled
    function takes a few; XLA crashes when there are no more.
    """
    yield
    if _MAPS.exists() and _MAPS.read_text().count("\n") > 20_000:
        jax.clear_caches()
        gc.collect()
