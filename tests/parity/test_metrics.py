"""Measures of pairs against audiocraft's formulas, written in torch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from musicgen_jax import metrics  # noqa: E402
from musicgen_jax.metrics.protocols import PROTOCOLS  # noqa: E402

RATE, WINDOW, HOP = 32000, 16384, 4096


# --- KL divergence: audiocraft's `KLDivergenceMetric`, and stable-audio-metrics' own --------------


def distributions(seed, n=6, classes=527):
    logits = np.random.default_rng(seed).normal(0, 3, (n, classes)).astype(np.float32)
    return torch.softmax(torch.from_numpy(logits), dim=-1)


def theirs(generated, reference):
    """`kl_div` takes the logarithm of the second distribution: KL(reference || generated)."""
    log = (generated + 1e-6).log()
    return float(torch.nn.functional.kl_div(log, reference, reduction="none").sum(-1).mean())


@pytest.mark.parametrize("seed", range(3))
def test_kl_divergence(seed):
    p, q = distributions(seed), distributions(seed + 100)
    assert metrics.kl_divergence(p.numpy(), q.numpy()) == pytest.approx(theirs(q, p), rel=1e-5)
    assert metrics.kl_divergence(q.numpy(), p.numpy()) == pytest.approx(theirs(p, q), rel=1e-5)


def test_the_two_tools_have_two_directions():
    rules = {name: PROTOCOLS[name].passt for name in ("audiocraft", "stable-audio")}
    assert rules["audiocraft"].reference_first
    assert not rules["stable-audio"].reference_first


# --- Chroma: audiocraft's `ChromaCosineSimilarityMetric` ------------------------------------------


def extractor(wav):
    """One-hot chroma [T, 12] of float32 [W] at 32 kHz."""
    missing = max(WINDOW - len(wav), 0)
    wav = torch.nn.functional.pad(wav, (missing // 2, missing - missing // 2))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(wav, WINDOW, HOP, WINDOW, window, pad_mode="reflect", return_complex=True)
    power = spectrum.abs().pow(2) / window.pow(2).sum()
    bank = transformers.audio_utils.chroma_filter_bank(
        num_frequency_bins=WINDOW, sampling_rate=RATE, tuning=0, num_chroma=12
    )
    chroma = torch.from_numpy(bank.astype(np.float32)) @ power
    chroma = chroma / chroma.amax(0).clamp(min=1e-6)
    return torch.nn.functional.one_hot(chroma.argmax(0), 12).float()


def chroma_metric(generated, reference):
    same, weight = 0.0, 0
    for made, real in zip(generated, reference, strict=True):
        frames = -(-made.shape[1] // HOP)
        ours, known = (extractor(torch.from_numpy(x.mean(0)))[:frames] for x in (made, real))
        same += float(torch.nn.functional.cosine_similarity(ours, known, dim=1, eps=1e-8).sum())
        weight += frames
    return same / weight


def notes(seed, seconds, channels):
    """Tones of 0.3 s with partials and a little noise, float32 [channels, W]."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    pitch = 110 * 2 ** (rng.integers(0, 36, int(seconds / 0.3) + 1) / 12)
    frequency = pitch[(t / 0.3).astype(int)]
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    wave = sum(np.sin(k * phase) / k for k in (1, 2, 3)) * 0.2
    return (wave + rng.normal(0, 0.01, (channels, len(t)))).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2])
def test_chroma(channels):
    lengths = (0.2, 1.0, 2.5, 4.096, 5.03)
    made = [notes(i, seconds, channels) for i, seconds in enumerate(lengths)]
    real = [notes(i + (i % 2) * 50, seconds, channels) for i, seconds in enumerate(lengths)]
    made.append(np.zeros((channels, RATE), np.float32))
    real.append(notes(99, 1.0, channels))
    expected = chroma_metric(made, real)
    assert 0.2 < expected < 0.9
    assert metrics.chroma_cosine(made, real, RATE) == pytest.approx(expected, rel=1e-5)
