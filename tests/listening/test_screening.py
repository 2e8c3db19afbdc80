"""Who is left out: random clickers, the bored, those who heard little; and nobody else."""

import numpy as np
import pytest

from musicgen_jax.listening.screening import Rules, correlations, screen

REFERENCE = 2
SYSTEMS = np.array([55.0, 70.0, 97.0, 20.0])  # two systems, the reference, the anchor


def honest(rng, raters, pieces=12):
    """Scores of people who hear what there is to hear: [raters, 2, pieces, systems]."""
    raters_, pieces_ = rng.normal(0, 3, (raters, 1, 1, 1)), rng.normal(0, 3, (1, 2, pieces, 1))
    noise = rng.normal(0, 8, (raters, 2, pieces, len(SYSTEMS)))
    return np.clip(np.round(SYSTEMS + raters_ + pieces_ + noise), 1, 100)


def clickers(rng, raters, pieces=12):
    return rng.integers(1, 101, (raters, 2, pieces, len(SYSTEMS))).astype(float)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reference", [REFERENCE, None])
def test_random_clickers_go_and_honest_raters_stay(seed, reference):
    rng = np.random.default_rng(seed)
    scores = np.concatenate([honest(rng, 12), clickers(rng, 5)])
    out = screen(scores, np.ones(17), reference, Rules())
    assert set(out) == set(range(12, 17))


def test_clickers_in_the_majority_do_not_pass_for_the_norm():
    rng = np.random.default_rng(7)
    scores = np.concatenate([honest(rng, 4), clickers(rng, 8)])
    assert set(screen(scores, np.ones(12), REFERENCE, Rules())) == set(range(4, 12))


def test_who_heard_little_is_left_out():
    scores = honest(np.random.default_rng(1), 5)
    out = screen(scores, np.array([1, 0.94, 1, 0.96, 1]), REFERENCE, Rules())
    assert list(out) == [1]
    assert "heard 94%" in out[1]


def test_the_reference_must_be_recognised():
    scores = honest(np.random.default_rng(2), 5)
    scores[3, 0, :, REFERENCE] = 84
    assert list(screen(scores, np.ones(5), REFERENCE, Rules())) == [3]
    assert screen(scores, np.ones(5), REFERENCE, Rules(reference=0)) == {}
    scores[3, 0, :, REFERENCE] = 85
    assert screen(scores, np.ones(5), REFERENCE, Rules()) == {}


@pytest.mark.parametrize("score", [1.0, 90.0, 100.0])
def test_the_same_score_for_everything_is_no_answer(score):
    scores = honest(np.random.default_rng(3), 5)
    scores[0] = score
    assert set(screen(scores, np.ones(5), REFERENCE, Rules())) == {0}


def test_an_upside_down_scale_is_left_out_without_a_reference():
    scores = honest(np.random.default_rng(4), 6)
    scores[2] = 101 - scores[2]
    assert set(screen(scores, np.ones(6), None, Rules())) == {2}


def test_two_raters_cannot_be_told_apart():
    rng = np.random.default_rng(5)
    scores = np.concatenate([honest(rng, 1), clickers(rng, 1)])
    assert screen(scores, np.ones(2), None, Rules()) == {}


def test_correlations_are_pearsons_with_the_mean_of_the_others():
    scores = honest(np.random.default_rng(6), 4).reshape(4, -1)
    scores[0, 5:9] = np.nan
    found = correlations(scores)
    known = ~np.isnan(scores[0])
    expected = np.corrcoef(scores[0, known], scores[1:, known].mean(axis=0))[0, 1]
    assert found[0] == pytest.approx(expected)
    others = np.nanmean(np.delete(scores, 1, axis=0), axis=0)
    assert found[1] == pytest.approx(np.corrcoef(scores[1], others)[0, 1])
