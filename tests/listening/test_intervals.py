"""Bootstrap intervals: their coverage in simulated studies, and their edges."""

import numpy as np
import pytest
import scipy.stats

from musicgen_jax.listening.intervals import Interval, intervals, t_quantile


@pytest.mark.parametrize("freedom", [1, 1.7, 4, 9.5, 30, 400])
@pytest.mark.parametrize("share", [0.025, 0.5, 0.9, 0.975, 0.995])
def test_quantiles_are_those_of_scipy(share, freedom):
    expected = scipy.stats.t.ppf(share, freedom)
    assert t_quantile(share, freedom) == pytest.approx(expected, rel=1e-5, abs=1e-9)


# Raters, pieces, and the spreads of raters, of pieces and of what is left.
STUDIES = [(5, 10, 8, 10, 15), (8, 20, 10, 3, 12), (20, 12, 5, 10, 10), (15, 15, 0, 0, 20)]


@pytest.mark.parametrize("study", STUDIES)
def test_about_95_of_100_intervals_contain_the_true_mean(study):
    raters, pieces, *spreads = study
    rng = np.random.default_rng(sum(study))
    hits, studies = 0, 400
    for i in range(studies):
        scores = (
            60
            + rng.normal(0, spreads[0], (raters, 1, 1))
            + rng.normal(0, spreads[1], (1, pieces, 1))
            + rng.normal(0, spreads[2], (raters, pieces, 1))
        )
        (found,) = intervals(scores, seed=i, draws=400)
        hits += found.low <= 60 <= found.high
    # Three standard errors around 95 %; scores without any effect of raters or pieces, where two
    # draws count the same noise twice, may only be too careful.
    assert hits / studies > 0.917
    assert hits / studies < (0.983 if spreads[0] else 1.001)


def test_raters_who_heard_different_pieces():
    """Half of the scores are missing, in the way of --per-rater: the mean stays unbiased."""
    rng = np.random.default_rng(1)
    scores = 50 + rng.normal(0, 5, (20, 10, 2)) + np.array([0, 10])
    scores[:10, :5] = scores[10:, 5:] = np.nan
    low, high = intervals(scores)
    assert low.low < 50 < low.high < high.low < 60 < high.high


def test_one_rater_or_one_piece_gives_a_mean_without_interval():
    scores = np.array([[[10.0], [20.0]]])
    assert intervals(scores) == [Interval(15.0, None, None)]
    assert intervals(scores.transpose(1, 0, 2)) == [Interval(15.0, None, None)]
    assert intervals(np.full((3, 3, 1), np.nan)) == [None]


def test_scores_that_never_differ_have_no_width():
    assert intervals(np.full((4, 5, 1), 7.0)) == [Interval(7.0, 7.0, 7.0)]
