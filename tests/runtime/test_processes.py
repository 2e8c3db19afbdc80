"""Two processes, one model: what they generate together is what one generates alone."""

import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.model import MusicGen
from tests.helpers import shallow
from tests.helpers.process_requests import SETTINGS, TEXTS
from tests.helpers.several_processes import run_together

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


@pytest.mark.slow
def test_two_processes_make_what_one_makes(folder, tmp_path):
    def command(address: str, i: int) -> list[str]:
        return ["-c", WORKER, address, str(i), str(folder), str(tmp_path / f"{i}.npz")]

    ended = run_together(command, tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    alone = MusicGen.from_pretrained(folder)
    expected = alone.generate(TEXTS, **SETTINGS)
    longer = alone.generate(TEXTS, **SETTINGS | {"duration": 0.4}, prompt_codes=expected.codes)
    for i in range(2):
        made = np.load(tmp_path / f"{i}.npz")
        np.testing.assert_array_equal(made["codes"], expected.codes)
        np.testing.assert_array_equal(made["longer"], longer.codes)
        np.testing.assert_allclose(made["audio"], expected.audio, atol=1e-5)
