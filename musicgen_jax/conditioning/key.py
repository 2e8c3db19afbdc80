"""The key and the tuning of a melody, for a model that plays in one key only.

Such a model knows the pitch classes of one major scale and of its relative minor. A melody in
another key is moved: its pitch classes all go up or down by the same number of semitones. Nothing
here is used for the official models, which know all keys.
"""

import dataclasses
import functools

import numpy as np

from musicgen_jax.conditioning.chroma import filter_bank

_MAJOR = (0, 2, 4, 5, 7, 9, 11)  # semitones above the tonic
_RAISED_SEVENTH = 8  # raised seventh of the relative minor: D sharp in E minor, counted from G
# How well each pitch class fits a key, from the tonic up (Krumhansl and Kessler, 1982).
_FITS = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
_BOTH = ("E flat", "E", "F", "F sharp", "G")  # have the same name in major and minor
_KEYS = {  # as musicians call them, from C up
    "major": ("C", "D flat", "D", *_BOTH, "A flat", "A", "B flat", "B"),
    "minor": ("C", "C sharp", "D", *_BOTH, "G sharp", "A", "B flat", "B"),
}
_TONIC_WEIGHT = 0.1  # weight of the fit, next to the share of the melody that is in the scale
_AS_GOOD = 0.02  # share of a melody that may be outside the model's scale before it is moved
_QUIET = 0.01  # share of the loudest frame's energy: quieter frames are not counted
_LOW, _HIGH = 80.0, 2500.0  # Hz: the range in which the tuning is measured
_SHARPEST = 0.1  # share of the loudest peak in a frame: weaker peaks are ignored


@dataclasses.dataclass(frozen=True)
class Move:
    """How a melody is moved into the model's key.

    Attributes:
      tuning: how much higher than A = 440 Hz the melody is tuned, in semitones.
      semitones: how far its pitch classes move, from -6 to 5.
      heard: the key that was heard, such as "D major".
      played: the key that it is played in.
    """

    tuning: float
    semitones: int
    heard: str
    played: str

    def __str__(self) -> str:
        return f"heard in {self.heard}, played in {self.played}"


def find_move(audio: np.ndarray, sample_rate: int, tonic: int, window: int, hop: int) -> Move:
    """How to move a melody into the major scale on `tonic`, or its relative minor.

    A melody that is in this scale already stays where it is, and so does silence.

    Args:
      audio: float32 [W], mono.
      sample_rate: in Hz.
      tonic: pitch class of the model's major scale.
      window: samples of a chroma frame.
      hop: samples from one frame to the next.
    """
    tuning = find_tuning(audio, sample_rate)
    classes, energy = loudest_classes(audio, sample_rate, window, hop, tuning)
    counted = energy > _QUIET * energy.max()
    share = np.bincount(classes[counted], minlength=12) / max(counted.sum(), 1)
    moves = np.arange(-6, 6)
    moved = np.stack([np.roll(share, semitones - tonic) for semitones in moves])  # tonic first
    # The minor key's raised seventh is not in either scale, but it is not a sign of another key.
    inside = moved[:, list(_MAJOR)].sum(axis=1) + 0.5 * moved[:, _RAISED_SEVENTH]
    fits = {
        "major": _correlation(moved, _FITS["major"]),
        "minor": _correlation(np.roll(moved, -9, axis=1), _FITS["minor"]),
    }
    scores = inside + _TONIC_WEIGHT * np.maximum(*fits.values())
    stays = int(np.flatnonzero(moves == 0)[0])
    enough = inside[stays] >= inside.max() - _AS_GOOD
    best = stays if enough else int(np.lexsort((np.abs(moves), -scores))[0])
    mode = max(fits, key=lambda mode: fits[mode][best])
    to = tonic if mode == "major" else (tonic + 9) % 12
    semitones = int(moves[best])
    heard, played = (f"{_KEYS[mode][pitch]} {mode}" for pitch in ((to - semitones) % 12, to))
    return Move(tuning, semitones, heard, played)


def find_tuning(audio: np.ndarray, sample_rate: int) -> float:
    """How much higher than A = 440 Hz a melody is tuned: semitones, from -0.5 to 0.5.

    The circular mean of the distances from the peaks of the spectrum to the nearest semitone. 0 if
    they do not agree, as in noise.
    """
    window = 1 << round(np.log2(0.2 * sample_rate))
    frames = _frames(audio, window, window // 2)
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1))
    middle = spectrum[:, 1:-1]
    peaks = (middle > spectrum[:, :-2]) & (middle >= spectrum[:, 2:])
    peaks &= middle > _SHARPEST * spectrum.max(axis=1, keepdims=True)
    at, bins = np.nonzero(peaks)
    before, top, after = (np.log(spectrum[at, bins + i] + 1e-12) for i in range(3))
    places = bins + 1 + 0.5 * (before - after) / (before - 2 * top + after - 1e-12)
    hertz = places * sample_rate / window
    weight = np.square(spectrum[at, bins + 1]) * ((hertz > _LOW) & (hertz < _HIGH))
    pitch = 12 * np.log2(np.maximum(hertz, 1.0) / 440)
    mean = np.sum(weight * np.exp(2j * np.pi * pitch)) / max(float(weight.sum()), 1e-12)
    return float(np.angle(mean) / (2 * np.pi)) if abs(mean) > 0.2 else 0.0


def loudest_classes(
    audio: np.ndarray, sample_rate: int, window: int, hop: int, tuning: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The loudest pitch class of each frame, as in `chroma.melody_chroma`, in numpy.

    Args:
      audio: float32 [W], mono.
      sample_rate: in Hz.
      window: samples of a frame.
      hop: samples from one frame to the next.
      tuning: how much higher than A = 440 Hz the audio is tuned, in semitones.

    Returns:
      uint8 [T] and the frames' energy, float32 [T].
    """
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    frames = _frames(audio, window, hop) * hann.astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames, axis=1))).astype(np.float32)
    chroma = power @ _bank(sample_rate, window, round(tuning, 2)).T
    return np.argmax(chroma, axis=1).astype(np.uint8), power.sum(axis=1)


@functools.lru_cache(maxsize=32)
def _bank(sample_rate: int, window: int, tuning: float) -> np.ndarray:
    return filter_bank(sample_rate, 12, window, tuning).astype(np.float32)


def _frames(audio: np.ndarray, window: int, hop: int) -> np.ndarray:
    """[T, window] around every `hop`-th sample; mirrored at both ends."""
    if (missing := window - len(audio)) > 0:
        audio = np.pad(audio, (missing // 2, missing - missing // 2))
    padded = np.pad(audio, window // 2, mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]


def _correlation(rows: np.ndarray, profile: tuple[float, ...]) -> np.ndarray:
    """Pearson's correlation of each row [N, 12] with a profile; 0 if a row is flat."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    wanted = np.asarray(profile) - np.mean(profile)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(wanted)
    return rows @ wanted / np.maximum(norms, 1e-12)
