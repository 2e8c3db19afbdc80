"""Paired tests between systems."""

import numpy as np
import pytest

from musicgen_jax.listening.significance import fewest, holm, paired_p


def simulated(rng, difference, raters, pieces):
    """Differences that vary with the rater, with the piece, and by chance."""
    return (
        difference
        + rng.normal(0, 4, (raters, 1))
        + rng.normal(0, 4, (1, pieces))
        + rng.normal(0, 10, (raters, pieces))
    )


@pytest.mark.parametrize(
    ("raters", "pieces", "studies"), [(6, 12, 200), (8, 10, 200), (16, 16, 50)]
)
def test_equal_systems_rarely_differ(raters, pieces, studies):
    rng = np.random.default_rng(raters)
    p = [paired_p(simulated(rng, 0, raters, pieces)) for _ in range(studies)]
    assert np.mean(np.array(p) < 0.05) <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5


def test_different_systems_are_found():
    rng = np.random.default_rng(0)
    p = [paired_p(simulated(rng, 10, 10, 15)) for _ in range(40)]
    assert np.mean(np.array(p) < 0.05) > 0.9


def test_a_difference_in_one_piece_alone_is_none():
    """Every rater agrees, but other pieces may be another matter."""
    differences = np.zeros((12, 6))
    differences[:, 0] = 60
    assert paired_p(differences) == 1


@pytest.mark.parametrize("n", [1, 3, 6, 10])
def test_the_smallest_p_value_is_two_sign_patterns(n):
    differences = 5 + np.random.default_rng(n).normal(0, 0.1, (n, 30))
    assert paired_p(differences) == pytest.approx(2 / 2**n)


@pytest.mark.parametrize("pairs", [1, 3, 10, 15])
def test_the_fewest_raters_can_show_a_difference_and_one_less_cannot(pairs):
    n = fewest(pairs)
    clear = 5 + np.random.default_rng(n).normal(0, 0.1, (n, 20))
    others = [1.0] * (pairs - 1)
    assert holm([paired_p(clear), *others])[0] < 0.05
    assert holm([paired_p(clear[1:]), *others])[0] > 0.05


def test_missing_scores_do_not_count():
    differences = simulated(np.random.default_rng(2), 10, 10, 15)
    padded = np.full((12, 17), np.nan)
    padded[:10, :15] = differences
    assert paired_p(padded) == paired_p(differences)
    assert paired_p(np.full((3, 3), np.nan)) == 1


def test_holm_by_hand():
    # Holm's procedure on three p-values: times 3, times 2, times 1, and never falling.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([]) == []
