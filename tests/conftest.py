"""Every test runs on the CPU, in full float32, with eight fake devices."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.compilation import quick_flags, remove_old_programs, share_contexts
from tests.helpers.paths import COMPILED

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MUSICGEN_JAX_CACHE"] = "off"  # nothing reaches the user's own folder
os.environ["XLA_FLAGS"] = quick_flags()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Writing down which line of Python every operation comes from is a third of the time that JAX
# takes to hand a small program to XLA.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# A shell makes what it runs in the background ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")  # as careful code around ours may have it
share_contexts()

# Tracing makes objects by the hundred thousand; looking through all of JAX for garbage at each of
# Python's usual occasions takes a fifth of the suite's time.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 10, 10)

_MAPS = Path("/proc/self/maps")  # on Linux


def pytest_configure(config: pytest.Config) -> None:
    """Prepares the cache of compiled programs, which all workers use at the same time."""
    remove_old_programs()
    # JAX writes in place: a worker that reads half a program is warned, and compiles it.
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compil")


@pytest.fixture
def nothing_cached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests about compiling: JAX's cache on disk is as JAX has it, off.

    Processes that the test starts have none either.
    """
    options = {
        "jax_compilation_cache_dir": None,
        "jax_persistent_cache_min_compile_time_secs": 1.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        monkeypatch.delenv(name.upper(), raising=False)
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX opens its folder once
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


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
