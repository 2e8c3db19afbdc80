"""Kernel distance, KL divergence and chroma similarity: figures that need no network."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.errors import UserError
from musicgen_jax.metrics.chroma import agreement, chroma_cosine, loudest_classes
from musicgen_jax.metrics.divergence import kl_divergence
from musicgen_jax.metrics.kernel import kernel_audio_distance, median_distance

seeds = st.integers(0, 2**32 - 1)


# --- Kernel Audio Distance --------------------------------------------------------------------


def rows(seed, n, shift=0.0, dim=6):
    return np.random.default_rng(seed).standard_normal((n, dim)) + shift


def by_definition(x, y):
    """100 times the unbiased estimate, pair by pair."""

    def k(a, b):
        s = median_distance(y)
        return np.exp(-np.square(a - b).sum() / (2 * s**2 + 1e-8))

    def within(z):
        return np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])

    return 100 * (within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_kernel_distance_by_definition():
    x, y = rows(0, 13), rows(1, 9, 0.5)
    assert kernel_audio_distance(x, y) == pytest.approx(by_definition(x, y), rel=1e-10)


def test_the_bandwidth_is_that_of_the_reference():
    x, y = rows(0, 13), 3 * rows(1, 9)
    assert kernel_audio_distance(x, y) != pytest.approx(kernel_audio_distance(y, x), rel=1e-3)
    same = {"bandwidth": 2.0}
    assert kernel_audio_distance(x, y, **same) == pytest.approx(
        kernel_audio_distance(y, x, **same), rel=1e-12
    )


def test_blocks_change_nothing():
    x, y = rows(2, 1500), rows(3, 1100, 0.3)
    d = np.square(x[:, None] - y[None]).sum(-1)
    s = median_distance(y)
    across = np.exp(-d / (2 * s**2 + 1e-8)).mean()
    within = []
    for z in (x, y):
        k = np.exp(-np.square(z[:, None] - z[None]).sum(-1) / (2 * s**2 + 1e-8))
        within.append((k.sum() - len(z)) / (len(z) * (len(z) - 1)))
    assert kernel_audio_distance(x, y) == pytest.approx(100 * (sum(within) - 2 * across), rel=1e-9)


def test_equal_distributions_are_at_about_zero_and_noise_is_farther():
    y = rows(4, 400)
    near, shifted, far = (kernel_audio_distance(rows(5, 400, shift), y) for shift in (0, 0.3, 1))
    assert abs(near) < 0.3 < shifted < far


@pytest.mark.parametrize(
    ("values", "median"), [([0, 1], 1), ([0, 1, 3], 2), ([0, 1, 3, 7], 3), ([0, 0, 0], 0)]
)
def test_median_distance(values, median):
    """Of an even number of distances the lower middle one: 1 2 3 4 6 7 has 3."""
    assert median_distance(np.array(values, float)[:, None]) == pytest.approx(median)


def test_kernel_distance_refuses():
    with pytest.raises(UserError, match="at least 2 rows"):
        kernel_audio_distance(rows(0, 1), rows(0, 5))
    with pytest.raises(UserError, match="do not compare"):
        kernel_audio_distance(rows(0, 4, dim=3), rows(0, 5))


# --- KL divergence ----------------------------------------------------------------------------


def distributions(seed, n=5, classes=7):
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), n)


def test_kl_by_hand():
    p, q = np.array([[0.5, 0.5, 0]]), np.array([[0.25, 0.25, 0.5]])
    assert kl_divergence(p, q) == pytest.approx(np.log(2), abs=1e-5)
    # Where the second is zero the floor stands in for it.
    both = 0.25 * np.log(0.25 / (0.5 + 1e-6)) * 2 + 0.5 * np.log(0.5 / 1e-6)
    assert kl_divergence(q, p) == pytest.approx(both)


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_kl_is_that_of_scipy_but_for_the_floor(seed):
    from scipy.stats import entropy

    p, q = distributions(seed), distributions(seed + 1)
    assert kl_divergence(p, q) == pytest.approx(entropy(p.T, (q + 1e-6).T).mean(), abs=1e-4)
    assert kl_divergence(p, p) == pytest.approx(0, abs=1e-4)


def test_kl_refuses_what_is_no_distribution():
    p = distributions(0)
    for bad in (p * 2, p - 0.5, np.full_like(p, np.nan)):
        with pytest.raises(UserError, match="distribution"):
            kl_divergence(p, bad)
    with pytest.raises(UserError, match="classes"):
        kl_divergence(p, p[:3])
    with pytest.raises(UserError, match="classes"):
        kl_divergence(p[:0], p[:0])


# --- Chroma -----------------------------------------------------------------------------------

RATE = 32000


def tone(frequency, seconds, rate=RATE):
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)[None].astype("f4")


def test_chroma_of_the_same_notes_agrees():
    """Octaves, level, channels and rate do not count."""
    a = tone(440, 1.5)
    assert chroma_cosine(a, a, RATE) == 1
    assert chroma_cosine(0.1 * a, np.concatenate([a, a]), RATE) == 1
    assert chroma_cosine(tone(880, 1.5), a, RATE) == 1
    assert chroma_cosine(tone(440, 1.5, 44100), tone(220, 1.5, 44100), 44100) == 1
    assert chroma_cosine(tone(466.16, 1.5), a, RATE) == 0


def test_chroma_counts_frames():
    a, b = tone(440, 2), tone(440, 2)
    b[:, RATE:] = tone(330, 1)
    assert 0.4 < chroma_cosine(b, a, RATE) < 0.65
    # A long pair weighs more than a short one.
    assert chroma_cosine([tone(440, 3), tone(330, 1)], [tone(440, 3), a], RATE) > 0.7


@pytest.mark.parametrize(("samples", "frames"), [(320_000, 79), (8192, 2), (8193, 3), (100, 1)])
def test_frames_compared(samples, frames):
    """One for each started hop, also of clips shorter than a window; of two lengths the shorter."""
    clip = np.random.default_rng(0).standard_normal((1, samples)).astype("f4")
    classes = loudest_classes(clip, RATE)
    assert classes.shape == (frames,)
    longer = loudest_classes(np.concatenate([clip, clip], axis=1), RATE)
    assert agreement(longer, classes)[1] == frames


def test_silence_is_c():
    silence = np.zeros((1, RATE), np.float32)
    assert chroma_cosine(silence, silence, RATE) == 1
    assert chroma_cosine(silence, tone(261.63, 1), RATE) == 1
    assert chroma_cosine(silence, tone(440, 1), RATE) == 0


def test_chroma_refuses():
    with pytest.raises(UserError, match="in pairs"):
        chroma_cosine([tone(440, 1)], [], RATE)
    with pytest.raises(UserError, match="NaN"):
        chroma_cosine(np.full((1, 9), np.nan, np.float32), tone(440, 1), RATE)
