import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.errors import UserError
from musicgen_jax.metrics import frechet
from musicgen_jax.metrics.frechet import frechet_distance, gaussian, gaussian_of

seeds = st.integers(0, 2**32 - 1)


def draw(seed, n, dim, scale=1.0, shift=0.0):
    """Rows of a Gaussian with a random covariance of a decaying spectrum."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dim, dim)) * np.geomspace(1, 0.01, dim)
    return scale * rng.standard_normal((n, dim)) @ mixing + shift


def by_square_root(x, y):
    """The textbook formula, by scipy's square root of a product of full rank."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    shift = x.mean(0) - y.mean(0)
    return shift @ shift + np.trace(a + b) - 2 * np.trace(root).real


@pytest.mark.parametrize(("dim", "n", "m"), [(2, 50, 40), (16, 300, 200), (128, 1000, 700)])
def test_the_textbook_formula(dim, n, m):
    x, y = draw(0, n, dim), draw(1, m, dim, 1.3, 0.2)
    assert frechet_distance(x, y) == pytest.approx(by_square_root(x, y), rel=1e-6)


def test_one_dimension_by_hand():
    x, y = np.array([[0.0], [2.0]]), np.array([[10.0], [16.0]])
    # Deviations sqrt(2) and sqrt(18): (1 - 13)^2 + (sqrt(18) - sqrt(2))^2.
    assert frechet_distance(x, y) == pytest.approx(144 + 8)


@given(seed=seeds, n=st.integers(2, 40), dim=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_a_set_is_at_no_distance_from_itself(seed, n, dim):
    """Also with fewer rows than dimensions, in another order and in other batches."""
    x = draw(seed, n, dim)
    running = frechet.RunningGaussian()
    for part in np.array_split(x[::-1], min(3, n)):
        running.update(part)
    assert frechet.distance(gaussian(x), running.gaussian()) <= 1e-10 * np.square(x).sum()
    np.testing.assert_allclose(
        running.gaussian().covariance, np.cov(x, rowvar=False).reshape(dim, dim), atol=1e-10
    )
    np.testing.assert_allclose(running.gaussian().mean, x.mean(0), atol=1e-12)


@given(seed=seeds, n=st.integers(2, 30), m=st.integers(2, 30), dim=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_symmetry_shift_and_rotation(seed, n, m, dim):
    x, y = draw(seed, n, dim), draw(seed + 1, m, dim, 2.0, 1.0)
    value = frechet_distance(x, y)
    assert value >= 0
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-9, abs=1e-9)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]
    moved = frechet_distance(x @ rotation + 5, y @ rotation + 5)
    assert moved == pytest.approx(value, rel=1e-8, abs=1e-8)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * value, rel=1e-9, abs=1e-9)


def test_a_shift_counts_squared():
    x = draw(3, 60, 7)
    assert frechet_distance(x, x + 2) == pytest.approx(7 * 4)


def test_large_means_lose_no_digits():
    """A sum of squares minus a squared mean would have no digits left here."""
    x, y = draw(4, 200, 5), draw(5, 200, 5)
    assert frechet_distance(x + 1e6, y + 1e6) == pytest.approx(frechet_distance(x, y), rel=1e-6)


def test_statistics_give_the_distance_of_their_rows():
    x, y = draw(6, 90, 32), draw(7, 20, 32)  # the second covariance has no full rank
    stored = [gaussian_of(rows.mean(0), np.cov(rows, rowvar=False)) for rows in (x, y)]
    assert frechet.distance(*stored) == pytest.approx(frechet_distance(x, y), rel=1e-7)


def test_memory_does_not_grow_with_rows():
    running = frechet.RunningGaussian()
    for seed in range(30):
        running.update(draw(seed, 11, 8))
        assert running._root.shape[0] <= 16
    assert running.count == 330


def test_expected_bias():
    """Two halves of one distribution: a distance of about the known bias."""
    source = gaussian(draw(8, 20_000, 24))
    rng = np.random.default_rng(0)
    n, m = 500, 800
    values = [
        frechet_distance(*(rng.standard_normal((k, 24)) @ source.root[-24:] for k in (n, m)))
        for _ in range(20)
    ]
    assert np.mean(values) == pytest.approx(
        frechet.expected_bias(gaussian(rng.standard_normal((n, 24)) @ source.root[-24:]), n, m),
        rel=0.15,
    )


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "at least 2 rows"),
        (np.zeros((0, 3)), np.zeros((4, 3)), "at least 2 rows"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "do not compare"),
        (np.zeros(4), np.zeros((4, 2)), r"must be \[rows, D\]"),
        (np.full((4, 3), np.nan), np.zeros((4, 3)), "not finite"),
    ],
)
def test_what_cannot_be_compared(x, y, words):
    with pytest.raises(UserError, match=words):
        frechet_distance(x, y)


@pytest.mark.parametrize(
    ("mean", "covariance", "words"),
    [
        (np.zeros(3), np.eye(2), r"\[D\] and \[D, D\]"),
        (np.zeros(2), np.array([[1, np.inf], [0, 1]]), "not finite"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (np.zeros(2), np.diag([1.0, -0.5]), "negative eigenvalue"),
    ],
)
def test_what_is_not_a_covariance(mean, covariance, words):
    with pytest.raises(UserError, match=words):
        gaussian_of(mean, covariance)


def test_rows_of_another_width():
    running = frechet.RunningGaussian()
    running.update(np.ones((3, 4)))
    with pytest.raises(UserError, match="rows of 5 numbers among rows of 4"):
        running.update(np.ones((3, 5)))
