"""VGGish's front end, windows and levels; the network is compared in tests/parity."""

import numpy as np
import pytest

from musicgen_jax.audio.level import normalize_audio
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.protocols import PROTOCOLS
from musicgen_jax.metrics.resample import resample_kaiser
from musicgen_jax.metrics.vggish import Vggish, examples, log_mel, prepare
from tests.goldens.make_goldens_metrics import SIGNALS, signal
from tests.helpers.paths import GOLDENS
from tests.helpers.tolerance import assert_close

RATE = 16000
AUDIOCRAFT, FADTK = (PROTOCOLS[name].vggish for name in ("audiocraft", "fadtk"))


@pytest.mark.parametrize("name", SIGNALS)
def test_the_front_end_is_torchvggishs(name):
    expected = np.load(GOLDENS / "metrics/vggish.npz")[name]
    assert_close(examples(signal(name), FADTK), expected, 1e-6)


@pytest.mark.parametrize(
    ("samples", "audiocraft", "fadtk"),
    [
        (160_000, 19, 10),
        (16_000, 1, 1),
        (15_999, 0, 1),
        (15_600, 0, 1),
        (15_599, 0, 0),
        (23_999, 1, 1),
        (24_000, 2, 1),
        (399, 0, 0),
        (1, 0, 0),
    ],
)
def test_how_many_rows(samples, audiocraft, fadtk):
    clip = np.zeros(samples)
    assert examples(clip, AUDIOCRAFT).shape == (audiocraft, 96, 64)
    assert examples(clip, FADTK).shape == (fadtk, 96, 64)


def test_googles_windows_are_seconds_by_themselves():
    clip = np.random.default_rng(0).normal(0, 0.1, 40_000)
    rows = examples(clip, AUDIOCRAFT)
    for i, row in enumerate(rows):
        alone = log_mel(clip[8000 * i : 8000 * i + RATE])[:96]
        np.testing.assert_allclose(row, alone, atol=1e-6)


def test_the_level_does_not_count_for_audiocraft():
    wav = np.random.default_rng(0).normal(0, 0.05, (2, 20_000)).astype(np.float32)
    loud, quiet = (prepare(wav * gain, RATE, AUDIOCRAFT) for gain in (1, 0.1))
    np.testing.assert_allclose(loud, quiet, atol=1e-3)
    assert loud.max() == 1
    loud, quiet = (prepare(wav * gain, RATE, FADTK) for gain in (1, 0.1))
    np.testing.assert_allclose(loud, 10 * quiet, atol=1e-3)


def test_googles_level_is_that_of_the_largest_sample_not_of_the_smallest():
    wav = np.full((1, RATE), 0.1, np.float32)
    wav[0, 5] = -0.5
    peak = 10 ** (-1 / 20)
    assert normalize_audio(wav, RATE, "peak").min() == pytest.approx(-peak)
    assert prepare(wav, RATE, AUDIOCRAFT).min() == pytest.approx(-5, rel=1e-3)


def test_silence_stays_silent():
    silence = np.zeros((2, RATE), np.float32)
    for rule in (AUDIOCRAFT, FADTK):
        assert not prepare(silence, RATE, rule).any()


def test_fadtk_pads_short_clips():
    assert len(prepare(np.ones((1, 50), np.float32), RATE, FADTK)) == RATE


def test_what_is_refused():
    with pytest.raises(UserError, match="NaN"):
        prepare(np.full((1, 50), np.inf, np.float32), RATE, FADTK)
    with pytest.raises(UserError, match="does not measure with VGGish"):
        Vggish(None, "stable-audio")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="musicgen-jax convert FILE"):
        Vggish.from_pretrained("/nowhere")


@pytest.mark.parametrize(("old", "new"), [(44100, 16000), (32000, 24000), (16000, 48000)])
def test_resampling_keeps_what_both_rates_hold(old, new):
    """Levels and phases of a low tone stay; of a tone above both limits nothing does."""
    t = np.arange(old) / old
    out = resample_kaiser(np.cos(2 * np.pi * 1000 * t), old, new)
    assert len(out) == new
    inside = slice(new // 4, -new // 4)
    expected = np.cos(2 * np.pi * 1000 * np.arange(new) / new)
    np.testing.assert_allclose(out[inside], expected[inside], atol=1e-5)
    if new < old:
        high = resample_kaiser(np.cos(2 * np.pi * (new / 2 + 200) * t), old, new)
        assert np.abs(high[inside]).max() < 1e-4


def test_resampled_length_is_rounded_up():
    assert len(resample_kaiser(np.ones(1001), 44100, 16000)) == 364
    assert len(resample_kaiser(np.ones(1), 48000, 16000)) == 1
