"""FAD-infinity: what is left when the bias of small sets is taken away."""

import numpy as np
import pytest

from musicgen_jax.errors import UserError
from musicgen_jax.metrics.extrapolation import Blocks
from musicgen_jax.metrics.frechet import distance, frechet_distance, gaussian

DIM, ROWS = 16, 10


def clips(seed, count, common=0.0, shift=0.0):
    """Clips of 10 rows, of which a share is the same in the whole clip: float [count, 10, DIM]."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((DIM, DIM)) * np.geomspace(1, 0.05, DIM)
    shared = rng.standard_normal((count, 1, DIM)) * common**0.5
    own = rng.standard_normal((count, ROWS, DIM)) * (1 - common) ** 0.5
    return (shared + own) @ mixing + shift


@pytest.fixture(scope="module")
def reference():
    return gaussian(clips(1, 10_000).reshape(-1, DIM))


def extrapolated(reference, found):
    blocks = Blocks(len(found), reference)
    for rows in found:
        blocks.add(rows)
    return blocks.extrapolated()


@pytest.mark.parametrize("common", [0.0, 0.5])
@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_the_bias_goes(reference, common, shift):
    """Also where the rows of a clip resemble each other, since parts are drawn by clip."""
    truth = frechet_distance(
        clips(2, 10_000, common, shift).reshape(-1, DIM), clips(1, 10_000).reshape(-1, DIM)
    )
    plain, found = [], []
    for seed in range(3, 9):
        some = clips(seed, 120, common, shift)
        plain.append(distance(gaussian(some.reshape(-1, DIM)), reference) - truth)
        found.append(extrapolated(reference, some))
    left = np.mean([each.value for each in found]) - truth
    assert abs(left) < 0.25 * np.mean(plain)
    assert all(each.low <= truth <= each.high for each in found)
    assert all(each.r_squared > 0.95 for each in found)


def test_drawing_is_seeded_and_blocks_are_sums(reference):
    some = clips(4, 64)
    first, again = extrapolated(reference, some), extrapolated(reference, some)
    assert first == again
    rows, value = first.points[-1]
    assert rows == 640  # the last point is the whole set
    assert value == pytest.approx(distance(gaussian(some.reshape(-1, DIM)), reference), rel=1e-8)
    assert first.points[0][0] == pytest.approx(160)


@pytest.mark.parametrize(("count", "words"), [(49, "500 rows"), (7, "8 clips"), (0, "500 rows")])
def test_small_sets_are_refused(reference, count, words):
    blocks = Blocks(max(count, 1), reference)
    for rows in clips(5, count):
        blocks.add(np.repeat(rows, 20, axis=0) if words == "8 clips" else rows)
    with pytest.raises(UserError, match=words):
        blocks.extrapolated()


def test_memory_does_not_grow_with_the_clips(reference):
    small, large = Blocks(100, reference), Blocks(10_000, reference)
    assert small._squares.nbytes == large._squares.nbytes
