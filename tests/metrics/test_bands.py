"""Sums over the bands of a spectrum."""

import numpy as np
import pytest

from musicgen_jax.metrics import clap_audio
from musicgen_jax.metrics.bands import in_bands


@pytest.mark.parametrize("frames", [0, 1, 50])
def test_it_is_the_product(frames):
    spectrum = np.random.default_rng(frames).random((frames, 513))
    filters = clap_audio.mel_filters()
    np.testing.assert_allclose(in_bands(spectrum, filters), spectrum @ filters, rtol=1e-12)


def test_bands_without_a_bin_are_zero():
    filters = np.zeros((5, 3))
    filters[1, 0], filters[[0, 4], 2] = 2, 3  # the last has a gap
    spectrum = np.arange(10.0).reshape(2, 5)
    np.testing.assert_array_equal(in_bands(spectrum, filters), [[2, 0, 12], [12, 0, 42]])
