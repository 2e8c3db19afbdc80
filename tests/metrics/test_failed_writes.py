"""A file that cannot be written is one error; the finalizers have nothing to complain about."""

import gc

import numpy as np
import pytest

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import features, statistics_file
from musicgen_jax.metrics.frechet import Gaussian


def kept(write) -> UserError:
    """What `write` raises, in a cycle with the frames that it came through."""
    try:
        write()
    except UserError as error:
        fault = error
        return fault
    pytest.fail("it was written")


def test_a_failed_write_ends_quietly(tmp_path):
    """Since Python 3.13 a buffer that is still shared complains when the cycle is collected."""
    (tmp_path / "file").touch()
    rows = np.zeros((3, 2))
    gaussian = Gaussian(np.zeros(2), np.eye(2), 3)
    for write in (
        lambda: features.cached(tmp_path / "file", "key", lambda: rows),
        lambda: statistics_file.write(tmp_path / "file/a.npz", gaussian, {}),
    ):
        kept(write)
        gc.collect()
