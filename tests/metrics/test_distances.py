"""`fad` and `kad` over a stream of clips."""

import tracemalloc

import numpy as np
import pytest

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import distances, frechet_distance, kernel_audio_distance
from musicgen_jax.metrics.distances import Distances
from musicgen_jax.metrics.frechet import gaussian
from musicgen_jax.metrics.measures import Known
from musicgen_jax.metrics.protocols import AUDIOCRAFT

DIM = 24


class Network:
    """Stands for a network: the rows come from the tests."""

    name, weights, definition = "rows", "00", "rows as they are"

    def embed(self, wav, sample_rate):
        """Never called."""
        raise AssertionError


def clips(seed, count, rows=19):
    for i in range(count):
        yield np.random.default_rng((seed, i)).normal(0, 1, (rows, DIM)).astype(np.float32)


def heard(reference, made, count, statistics=None):
    measure = Distances(("fad", "kad"), Network(), AUDIOCRAFT, count, statistics)
    for rows in reference:
        measure.hear_reference("r", rows)
    for rows in made:
        measure.hear("m", rows)
    return measure


def figures(measure):
    warnings = []
    return measure.figures(Known("id", warnings.append)), warnings


def test_the_figures_are_those_of_the_public_functions():
    found, warnings = figures(heard(clips(0, 30), clips(1, 30), 30))
    x, y = (np.concatenate(list(clips(seed, 30))) for seed in (1, 0))
    assert found["fad"]["value"] == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert found["kad"]["value"] == pytest.approx(kernel_audio_distance(x, y), rel=1e-9)
    # Two halves of one distribution: near the bias that the report names.
    assert found["fad"]["value"] == pytest.approx(found["fad"]["expected_bias"], rel=0.2)
    low, high = found["fad"]["infinity"]["interval"]
    assert low <= found["fad"]["infinity"]["value"] <= high
    assert abs(found["fad"]["infinity"]["value"]) < 0.7 * found["fad"]["value"]
    assert warnings == []


def test_a_set_against_itself_is_clamped_or_zero_and_says_which():
    found, warnings = figures(heard(clips(0, 9), clips(0, 9), 9))
    assert 0 <= found["fad"]["value"] < 1e-9
    assert found["fad"]["clamped"] == any("clamped to 0" in line for line in warnings)


def test_sets_of_other_sizes_and_too_few_rows_are_warned_of():
    _, warnings = figures(heard(clips(0, 30), clips(1, 1), 1))
    assert "19 rows for 24 dimensions" in warnings[0]
    assert "19 and 570 rows; sets of these sizes from one Gaussian would score" in warnings[1]


def test_statistics_have_no_kad():
    known = gaussian(np.concatenate(list(clips(0, 30))))
    found, _ = figures(heard((), clips(1, 30), 30, known))
    assert found["fad"]["value"] > 0
    assert isinstance(found["kad"], UserError)


def test_memory_does_not_grow_with_the_clips(monkeypatch):
    monkeypatch.setattr(distances, "_KERNEL_ROWS", 500)
    peaks = []
    for count in (100, 1000):
        tracemalloc.start()
        heard(clips(0, count), clips(1, count), count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
