"""Estimates the lead, tempo, metre, style and mode of a piece from its sound alone.

These are the judges of the bundled model, and they are independent of it. The features are plain
signal processing. The classifiers on top (scikit-learn, the extra `report`) are fitted on music
that the composer and the synthesiser rendered, half of it degraded by noise and filters, and never
on output of a codec or a language model. `tempo_bpm` is not fitted on anything.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from musicgen_jax.nano.composer import FRAME_RATE, PieceSpec
from musicgen_jax.nano.pieces import piece
from musicgen_jax.nano.synth import HOP, SAMPLE_RATE

PROBE_SEED = 40_000_000
"""Seeds of the pieces that probes are fitted on; see the other seeds in `nano.build`."""

ATTRIBUTES = ("lead", "tempo", "metre", "style", "mode", "bpm")

_STEP = SAMPLE_RATE // 100  # samples between spectra: 100 a second
_RATE = SAMPLE_RATE / _STEP
MEL_BANDS = 64
_LONGEST_LAG = 400  # spectra; the longest bar of the composer lasts 3.84 s
_TUNING = 200.0  # Hz, a G: chroma bins are centred on the composer's pitches

# --------------------------------------------------------------------------------- features


@dataclass(frozen=True)
class Features:
    """The input of the probes; all float32.

    Attributes:
        timbre: Statistics of log-mel spectra over the clip.
        rhythm: Autocorrelations of the onset strength, overall, low and high, lags up to 4 s.
        harmony: Chroma: of the clip, its bass, its beginning and its end.
        onset: Onset strength, 100 values a second, for `tempo_bpm`.
    """

    timbre: np.ndarray
    rhythm: np.ndarray
    harmony: np.ndarray
    onset: np.ndarray


def _spectra(audio: np.ndarray, size: int, step: int) -> np.ndarray:
    """Magnitudes [frame, size // 2 + 1] of windows centred on every `step` samples."""
    padded = np.pad(audio, size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::step]
    return np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=-1))


@functools.cache
def _mel_filters(size: int) -> np.ndarray:
    """Triangles [size // 2 + 1, band], evenly spaced in mel from 40 Hz to near Nyquist."""
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)[:, None]
    low, high = (2595 * np.log10(1 + f / 700) for f in (40.0, 0.975 * SAMPLE_RATE / 2))
    edges = 700 * (10 ** (np.linspace(low, high, MEL_BANDS + 2) / 2595) - 1)
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


@functools.cache
def _chroma_filters(size: int, low: float, high: float) -> np.ndarray:
    """Bumps [size // 2 + 1, 12] a quarter tone wide, on the pitch classes from G up."""
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    filters = np.zeros((len(hertz), 12), np.float32)
    for row, f in zip(filters, hertz, strict=True):
        if low < f < high:
            pitch = 12 * np.log2(f / _TUNING)
            row[round(pitch) % 12] = np.exp(-(((pitch - round(pitch)) / 0.25) ** 2))
    return filters


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Log-mel spectra [frame, band], 100 frames a second; independent of the clip's level."""
    audio = audio / max(float(np.sqrt(np.mean(audio**2))), 1e-3)
    return np.log(_spectra(audio, 1024, _STEP) @ _mel_filters(1024) + 0.3)


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / (x.std() + 1e-6)


def _autocorrelation(x: np.ndarray, lags: int) -> np.ndarray:
    """Of `x` without its mean, per pair of values that overlap, 1 at lag 0: [lags + 1]."""
    x = x - x.mean()
    size = 1 << (2 * len(x) - 1).bit_length()
    sums = np.fft.irfft(np.abs(np.fft.rfft(x, size)) ** 2)[: lags + 1]
    means = sums / (len(x) - np.arange(lags + 1))
    return means / (means[0] + 1e-9)


def features(audio: np.ndarray) -> Features:
    """Features of a mono clip at `SAMPLE_RATE`, float [W], more than 4 s of it.

    Raises:
        ValueError: the clip is too short for a whole bar.
    """
    if audio.ndim != 1 or len(audio) <= (_LONGEST_LAG + 1) * _STEP:
        raise ValueError(f"needs a mono clip of more than 4 s, got the shape {audio.shape}")
    audio = audio.astype(np.float32)
    mel = log_mel(audio)
    change = np.diff(mel, axis=0)
    timbre = [
        mel.mean(0),
        mel.std(0),
        np.abs(change).mean(0),
        np.maximum(change, 0).max(0),
        *np.percentile(mel, (10, 50, 90), axis=0),
    ]
    rise = np.maximum(change, 0)
    smooth = np.ones(31) / 31
    rhythm = []
    for low, high, every in ((0, MEL_BANDS, 1), (0, 12, 2), (40, MEL_BANDS, 2)):
        strength = rise[:, low:high].sum(1)
        strength = _standard(strength - np.convolve(strength, smooth, "same"))
        if not rhythm:
            onset = strength
        rhythm.append(_autocorrelation(strength, _LONGEST_LAG)[10::every])
    tonal = _spectra(audio, 4096, 4 * _STEP)
    tonal = np.log1p(20 * tonal / (tonal.max() + 1e-6))
    chroma = tonal @ _chroma_filters(4096, 60.0, 2000.0)  # [frame, class]
    bass = tonal @ _chroma_filters(4096, 60.0, 210.0)
    quarter = len(chroma) // 4
    harmony = [
        _standard(part.mean(0)) for part in (chroma, bass, chroma[:quarter], bass[-quarter:])
    ]
    as32 = [np.concatenate(x).astype(np.float32) for x in (timbre, rhythm, harmony)]
    return Features(*as32, onset.astype(np.float32))


# ------------------------------------------------------------------------- tempo, not fitted


def tempo_bpm(onset: np.ndarray, rate: float = _RATE) -> float:
    """Beats a minute up to octaves, from 75 to 150: where onsets repeat most.

    The score of a beat period is the sum of the autocorrelation of the onset strength at half, one,
    two and four times the period. No number here was fitted.

    Args:
        onset: Onset strength, float [T].
        rate: Values a second.
    """
    correlation = _autocorrelation(onset, min(len(onset) - 1, int(3.3 * rate)))
    periods = 0.4 * 2 ** (np.arange(120) / 120)  # seconds, an octave from 0.4 s
    lags = np.arange(len(correlation))
    scores = sum(np.interp(periods * 2.0**k * rate, lags, correlation) for k in (-1, 0, 1, 2))
    return float(60 / periods[np.argmax(scores)])


def same_tempo(bpm: float, spec: PieceSpec, tolerance: float = 0.08) -> bool:
    """Whether a tempo matches the piece's within `tolerance`, up to octaves.

    The beat of 6/8 may be counted in quarters or in dotted quarters.
    """
    beats = [spec.bpm, spec.bpm * 2 / 3] if spec.metre == "6/8" else [spec.bpm]
    octaves = [np.log2(bpm / beat) for beat in beats]
    return any(abs(o - round(o)) <= np.log2(1 + tolerance) for o in octaves)


# ----------------------------------------------------------------------------------- probes


def label(spec: PieceSpec, attribute: str):
    """The true answer to a probe; a piece's tempo in beats a minute takes one of eight values."""
    return round(spec.bpm, 2) if attribute == "bpm" else getattr(spec, attribute)


def rendered(seed: int, num_frames: int) -> tuple[PieceSpec, np.ndarray]:
    """The piece of a seed, and a clip of it that starts anywhere in its first four seconds."""
    start = int(np.random.default_rng(seed).integers(4 * FRAME_RATE))
    spec, audio = piece(seed, start + num_frames)
    return spec, audio[start * HOP :]


def worn(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A degraded copy of a clip: uneven, duller, with noise that follows the music.

    Args:
        audio: float32 [W] at `SAMPLE_RATE`.
        rng: Source of the filter and of the noise.
    """
    size, step = 1024, 256
    window = np.sqrt(np.hanning(size + 1)[:-1]).astype(np.float32)  # its squares add up to 2
    padded = np.pad(audio, (size, size + -len(audio) % step))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::step]
    spectra = np.fft.rfft(frames * window, axis=-1)
    octave = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 60.0) / 60)
    decibels = np.interp(octave, np.arange(9), rng.normal(0, 3, 9))
    cutoff = np.log2(rng.uniform(1_500, 8_000) / 60)
    decibels -= rng.uniform(3, 18) * np.maximum(0, octave - cutoff)
    spectra *= (10 ** (decibels / 20)).astype(np.float32)
    sums = np.cumsum(np.pad(np.abs(spectra), ((0, 0), (9, 8)), "edge"), axis=1)
    nearby = (sums[:, 17:] - sums[:, :-17]) / 17  # [frame, bin]
    noise = rng.standard_normal((2, *spectra.shape), np.float32)
    spectra += (noise[0] + 1j * noise[1]) * nearby * 10 ** (-rng.uniform(0, 20) / 20)
    frames = np.fft.irfft(spectra, axis=-1) * window / 2
    out = np.zeros(len(padded), np.float32)
    for first in range(size // step):  # every fourth frame, side by side
        part = frames[first :: size // step].ravel()
        out[first * step : first * step + len(part)] += part
    return out[size : size + len(audio)]


def _inputs(items: Sequence[Features], attribute: str) -> np.ndarray:
    parts = {"lead": ("timbre",), "style": ("timbre", "rhythm"), "mode": ("harmony",)}
    names = parts.get(attribute, ("rhythm",))
    return np.concatenate([np.stack([getattr(f, n) for f in items]) for n in names], axis=1)


class Probes:
    """One small classifier per attribute.

    Args:
        specs: The pieces.
        items: Features of their clips.
        seed: Of the classifiers' weights.
    """

    def __init__(self, specs: Sequence[PieceSpec], items: Sequence[Features], seed: int = 0):
        # Imported here because everything else in this file works without the extra.
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.models = {}
        for attribute in ATTRIBUTES:
            # Early stopping holds out a tenth of the clips.
            net = MLPClassifier((128,), alpha=1e-2, early_stopping=True, random_state=seed)
            model = make_pipeline(StandardScaler(), net)
            answers = np.array([str(label(spec, attribute)) for spec in specs])
            self.models[attribute] = model.fit(_inputs(items, attribute), answers)

    def predict(self, items: Sequence[Features]) -> Mapping[str, np.ndarray]:
        """Answers for every clip by attribute, strings [N]."""
        return {name: m.predict(_inputs(items, name)) for name, m in self.models.items()}
