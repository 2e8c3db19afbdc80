"""Krippendorff's alpha against published examples and against its definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from musicgen_jax.listening.agreement import krippendorff_alpha

X = np.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example D: four observers,
# twelve units; the text gives 0.849 for interval data.
FOUR_OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, X, X, X],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, X, 3],
    [X, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, X],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, X],
]
# The example of Wikipedia's article: three coders, fifteen units; 0.811 for interval data.
THREE_CODERS = [
    [X, X, X, X, X, 3, 4, 1, 2, 1, 1, 3, 3, X, 3],
    [1, X, 2, 1, 3, 3, 4, 3, X, X, X, X, X, X, X],
    [X, X, 2, 1, 3, 4, 4, X, 2, 1, 1, 3, 3, X, 4],
]


@pytest.mark.parametrize(("scores", "published"), [(FOUR_OBSERVERS, 0.849), (THREE_CODERS, 0.811)])
def test_published_examples(scores, published):
    assert krippendorff_alpha(np.array(scores)) == pytest.approx(published, abs=5e-4)


def by_definition(scores):
    """The textbook: average squared differences over pairs of values."""
    units = [[v for v in column if not np.isnan(v)] for column in np.array(scores).T]
    units = [unit for unit in units if len(unit) >= 2]
    values = [v for unit in units for v in unit]
    n = len(values)
    observed = sum(
        sum((a - b) ** 2 for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1)
        for unit in units
    )
    expected = sum((a - b) ** 2 for a, b in itertools.permutations(values, 2)) / (n - 1)
    return 1 - observed / expected


@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(2, 5), st.integers(2, 6)),
        elements=st.one_of(st.integers(1, 100).map(float), st.just(X)),
    )
)
def test_any_scores_give_what_the_definition_says(scores):
    shared = scores[:, (~np.isnan(scores)).sum(axis=0) >= 2]
    values = shared[~np.isnan(shared)]
    if len(values) == 0 or np.ptp(values) == 0:
        assert krippendorff_alpha(scores) is None
    else:
        assert krippendorff_alpha(scores) == pytest.approx(by_definition(scores), abs=1e-9)


def test_chance_gives_zero_and_full_agreement_one():
    rng = np.random.default_rng(0)
    clips = rng.integers(1, 101, (1, 400)).astype(float)
    assert krippendorff_alpha(np.repeat(clips, 5, axis=0)) == 1
    assert krippendorff_alpha(rng.integers(1, 101, (5, 400))) == pytest.approx(0, abs=0.05)
