"""Two processes, one model: what they generate together is what one generates alone."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.model import MusicGen
from tests.helpers import shallow
from tests.helpers.paths import ROOT
from tests.helpers.process_requests import SETTINGS, TEXTS

WORKER = """
import sys
import jax
import numpy as np

address, process, folder, out = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, 2, int(process), initialization_timeout=60)
assert jax.device_count() == 4 and jax.local_device_count() == 2

from musicgen_jax import sharding
from musicgen_jax.model import MusicGen
from tests.helpers.process_requests import SETTINGS, TEXTS

model = MusicGen.from_pretrained(folder, mesh=sharding.make_mesh(data=2, model=2))
made = model.generate(TEXTS, **SETTINGS)
longer = model.generate(TEXTS, **SETTINGS | {"duration": 0.4}, prompt_codes=made.codes)
np.savez(out, codes=made.codes, audio=made.audio, longer=longer.codes)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path, shallow.TEXT)
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_two(folder, tmp_path) -> list[tuple[int | None, str]]:
    """Exit code, None if it had to be killed, and output of both; neither outlives the call."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "PYTHONPATH": str(ROOT),
    }
    address = f"127.0.0.1:{free_port()}"
    processes = []
    try:
        for i in range(2):
            command = [sys.executable, "-c", WORKER, address, str(i), str(folder)]
            with (tmp_path / f"{i}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [*command, str(tmp_path / f"{i}.npz")],
                        stdout=log,
                        stderr=log,
                        env=environment,
                        cwd=ROOT,
                    )
                )
        deadline = time.monotonic() + 240
        while None in (codes := [process.poll() for process in processes]):
            if any(codes) or time.monotonic() > deadline:  # the other would wait for it forever
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(code, (tmp_path / f"{i}.log").read_text()[-2000:]) for i, code in enumerate(codes)]


def test_two_processes_make_what_one_makes(folder, tmp_path):
    ended = run_two(folder, tmp_path)
    if any("already in use" in log for _, log in ended):  # the port went to somebody else meanwhile
        ended = run_two(folder, tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    alone = MusicGen.from_pretrained(folder)
    expected = alone.generate(TEXTS, **SETTINGS)
    longer = alone.generate(TEXTS, **SETTINGS | {"duration": 0.4}, prompt_codes=expected.codes)
    for i in range(2):
        made = np.load(tmp_path / f"{i}.npz")
        np.testing.assert_array_equal(made["codes"], expected.codes)
        np.testing.assert_array_equal(made["longer"], longer.codes)
        np.testing.assert_allclose(made["audio"], expected.audio, atol=1e-5)
