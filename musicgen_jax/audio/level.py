"""Measures and sets the level of audio, all at once or piece by piece.

Names, defaults and formulas follow audiocraft's `data/audio_utils.py`. Audio is float32 [C, W],
nominally between -1 and 1. This file does not import jax.
"""

import math
from collections.abc import Iterator

import numpy as np

from musicgen_jax.errors import UserError

STRATEGIES = ("peak", "clip", "rms", "loudness")
_ENERGY_FLOOR = 2e-3  # audio with a lower root mean square counts as silence and is not changed


def checked(audio: np.ndarray) -> np.ndarray:
    """Returns the audio as float32 [C, W], or raises a UserError if it is not valid."""
    array = np.asarray(audio)
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(f"audio must be [channels, samples] and not empty, got {array.shape}")
    if array.dtype.kind in "biu":
        raise UserError(f"audio must be floating point within -1 and 1, got {array.dtype}")
    return array.astype(np.float32, copy=False)


# --- Level ------------------------------------------------------------------------------------


def normalize_audio(
    audio: np.ndarray,
    sample_rate: int,
    strategy: str = "peak",
    *,
    loudness_compressor: bool = False,
    normalize: bool = True,
    peak_clip_headroom_db: float = 1,
    rms_headroom_db: float = 18,
    loudness_headroom_db: float = 14,
) -> np.ndarray:
    """Sets the level of audio.

    No strategy changes silence (audiocraft divides by zero).

    Args:
      audio: float [C, W].
      sample_rate: in Hz.
      strategy: one of
        "peak": scales the largest sample to `-peak_clip_headroom_db` dB of full scale;
        "clip": does not scale, and clips at `-peak_clip_headroom_db` dB;
        "rms": scales the mean of the channels to a root mean square of `-rms_headroom_db` dB;
        "loudness": scales to `-loudness_headroom_db` LUFS (ITU-R BS.1770). Audio shorter than
        0.4 s, which has no loudness (audiocraft fails), and nearly silent audio is not scaled.
      loudness_compressor: after "loudness", squeezes peaks with tanh instead of clipping them.
      normalize: if False, "peak" and "rms" only ever make audio quieter.
      peak_clip_headroom_db: headroom for "peak" and "clip".
      rms_headroom_db: headroom for "rms".
      loudness_headroom_db: headroom for "loudness".

    Returns:
      float32 [C, W], between -1 and 1 unless `peak_clip_headroom_db` is negative.

    Raises:
      UserError: the strategy is unknown, or `audio` is empty, not [C, W] or not finite.
    """
    audio = checked(audio)
    if not np.isfinite(audio).all():
        raise UserError("audio holds samples that are NaN or infinite")
    meter = Meter(strategy, audio.shape[0], sample_rate)
    meter.update(audio)
    return apply_level(
        audio,
        strategy,
        meter.level(),
        loudness_compressor=loudness_compressor,
        normalize=normalize,
        peak_clip_headroom_db=peak_clip_headroom_db,
        rms_headroom_db=rms_headroom_db,
        loudness_headroom_db=loudness_headroom_db,
    )


class Meter:
    """Measures, piece by piece, the level that a strategy of `normalize_audio` needs.

    Args:
      strategy: a strategy of `normalize_audio`.
      channels: C, the number of channels.
      sample_rate: in Hz.
    """

    def __init__(self, strategy: str, channels: int, sample_rate: int):
        if strategy not in STRATEGIES:
            raise UserError(f"unknown strategy {strategy!r}: use one of {', '.join(STRATEGIES)}")
        self.strategy = strategy
        self.samples = 0  # per channel
        self.lowest, self.highest = math.inf, -math.inf
        self._squares = 0.0
        # audiocraft clips when it measures.
        self._loudness = (
            LoudnessMeter(channels, sample_rate, clip=True) if strategy == "loudness" else None
        )

    def update(self, audio: np.ndarray) -> None:
        """Adds the next samples, finite float32 [C, W], W at least 1."""
        self.samples += audio.shape[1]
        self.lowest = min(self.lowest, float(audio.min()))
        self.highest = max(self.highest, float(audio.max()))
        heard = audio.mean(axis=0, keepdims=True) if self.strategy == "rms" else audio
        self._squares += float(np.mean(np.square(heard, dtype=np.float64))) * audio.shape[1]
        if self._loudness:
            self._loudness.update(audio)

    def level(self) -> float:
        """The level for `apply_level`; call this at the end of the audio."""
        rms = math.sqrt(self._squares / self.samples)
        if self._loudness:
            return self._loudness.loudness() if rms >= _ENERGY_FLOOR else -math.inf
        return {
            "clip": 0.0,
            "peak": max(self.highest, -self.lowest),
            "rms": rms,
        }[self.strategy]


def apply_level(
    audio: np.ndarray,
    strategy: str,
    level: float,
    *,
    loudness_compressor: bool = False,
    normalize: bool = True,
    peak_clip_headroom_db: float = 1,
    rms_headroom_db: float = 18,
    loudness_headroom_db: float = 14,
) -> np.ndarray:
    """Normalises a part of the audio like `normalize_audio`, by the level of the whole.

    Each sample is mapped independently of the others, and the mapping is monotone.

    Args:
      audio: float32 [C, W].
      strategy: a strategy of `normalize_audio`.
      level: the level of the whole audio, from `Meter.level`.
      loudness_compressor: for "loudness": squeezes peaks with tanh.
      normalize: for "peak" and "rms": if False, audio only ever gets quieter.
      peak_clip_headroom_db: headroom for "peak" and "clip".
      rms_headroom_db: headroom for "rms".
      loudness_headroom_db: headroom for "loudness".

    Returns:
      float32 [C, W].
    """
    peak = 10 ** (-peak_clip_headroom_db / 20)
    if strategy == "clip":
        audio = np.clip(audio, -peak, peak)
    elif strategy == "peak":
        audio = _scale(audio, peak, level, normalize)
    elif strategy == "rms":
        audio = np.clip(_scale(audio, 10 ** (-rms_headroom_db / 20), level, normalize), -1, 1)
    else:
        if level > -math.inf:
            audio = audio * 10 ** ((-loudness_headroom_db - level) / 20)
            audio = np.tanh(audio) if loudness_compressor else audio
        audio = np.clip(audio, -1, 1)
    return audio.astype(np.float32)


def _scale(audio: np.ndarray, target: float, level: float, normalize: bool) -> np.ndarray:
    if level == 0 or (not normalize and level <= target):
        return audio
    return np.multiply(audio, target / level, dtype=np.float64)  # the factor can exceed float32


# --- Loudness (ITU-R BS.1770-4) ---------------------------------------------------------------


def loudness(audio: np.ndarray, sample_rate: int, *, clip: bool = False) -> float:
    """Integrated loudness by ITU-R BS.1770-4.

    The audio is K-weighted and cut into blocks of 0.4 s that overlap by three quarters. The first
    mean power is over the blocks above -70 LUFS. The result is the mean power over those of them
    that are no more than 10 LU below the first mean. Filters and blocks are those of torchaudio's
    `Loudness`, which audiocraft uses. Its filters are biquads of the RBJ cookbook with round
    numbers, because the recommendation gives its coefficients only for 48 kHz.

    Args:
      audio: float [C, W], at most five channels: left, right, centre and the two surrounds.
      sample_rate: in Hz, above 3000.
      clip: whether to clip at full scale after each filter, as torchaudio does and BS.1770 does
        not. Clipping lowers the loudness of audio near full scale by a fraction of a decibel.

    Returns:
      LUFS; minus infinity if no block passes the gates or the audio is shorter than one block.
    """
    audio = checked(audio)
    meter = LoudnessMeter(audio.shape[0], sample_rate, clip=clip)
    meter.update(audio)
    return meter.loudness()


class LoudnessMeter:
    """`loudness` of audio that comes piece by piece; the result does not depend on the pieces.

    Args:
      channels: C, at most five.
      sample_rate: in Hz, above 3000.
      clip: whether to clip at full scale after each filter, see `loudness`.
    """

    def __init__(self, channels: int, sample_rate: int, *, clip: bool = False):
        if channels > 5:
            raise UserError(f"loudness is defined for at most 5 channels, got {channels}")
        if sample_rate <= 3000:
            raise UserError(f"loudness needs a sample rate above 3000 Hz, got {sample_rate}")
        self._clip = clip
        self._filters = [
            _Biquad(*design(sample_rate), sample_rate) for design in (_treble_shelf, _high_pass)
        ]
        self._block = round(0.4 * sample_rate)
        self._step = round(0.25 * self._block)
        self._gains = np.array([1.0, 1.0, 1.0, 1.41, 1.41])[:channels]
        self._squares = np.zeros((channels, 0))  # of weighted samples that later blocks need
        self._powers: list[np.ndarray] = []

    def update(self, audio: np.ndarray) -> None:
        """Adds the next samples, float [C, W]."""
        self._weigh(audio.astype(np.float64), self._filters)

    def loudness(self) -> float:
        """The loudness of the whole audio in LUFS; call this once, at the end."""
        for i, last in enumerate(self._filters):
            for part in last.flush():
                self._weigh(self._clipped(part), self._filters[i + 1 :])
        power = np.concatenate([np.zeros(0), *self._powers])
        power = power[_lufs(power) > -70]
        if not power.size:
            return -math.inf
        power = power[_lufs(power) > _lufs(power.mean()) - 10]
        return float(_lufs(power.mean()))

    def _weigh(self, audio: np.ndarray, filters: list["_Biquad"]) -> None:
        if filters:
            for part in filters[0].push(audio):
                self._weigh(self._clipped(part), filters[1:])
            return
        self._squares = np.concatenate([self._squares, np.square(audio)], axis=1)
        if self._squares.shape[1] >= self._block:
            blocks = np.lib.stride_tricks.sliding_window_view(self._squares, self._block, axis=1)
            blocks = blocks[:, :: self._step]
            self._powers.append(self._gains @ blocks.mean(axis=-1))
            self._squares = self._squares[:, blocks.shape[1] * self._step :]

    def _clipped(self, audio: np.ndarray) -> np.ndarray:
        return np.clip(audio, -1, 1) if self._clip else audio


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(power)


def _treble_shelf(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of the head filter: +4 dB above 1500 Hz, Q 1/sqrt(2)."""
    w, a = 2 * math.pi * 1500 / rate, 10 ** (4 / 40)
    cos, slope = math.cos(w), math.sin(w) * math.sqrt(2 * a)  # 2 sqrt(a) sin(w) / (2 Q)
    up, down = a + 1, a - 1
    numerator = a * np.array(
        [up + down * cos + slope, -2 * (down + up * cos), up + down * cos - slope]
    )
    denominator = np.array(
        [up - down * cos + slope, 2 * (down - up * cos), up - down * cos - slope]
    )
    return numerator, denominator


def _high_pass(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of the ear's low-frequency filter: order 2, 38 Hz, Q 0.5."""
    w = 2 * math.pi * 38 / rate
    cos, alpha = math.cos(w), math.sin(w)  # alpha = sin(w) / (2 Q)
    numerator = (1 + cos) / 2 * np.array([1, -2, 1])
    return numerator, np.array([1 + alpha, -2 * cos, 1 - alpha])


class _Biquad:
    """A second-order recursive filter, applied by FFT: numpy can recurse only in a Python loop.

    The result is exact up to rounding. The impulse responses of the two filters above decay by
    1e-20 within a quarter of a second. So each chunk needs that much history before it, and that
    much silence after it against wrapping.
    """

    def __init__(self, numerator: np.ndarray, denominator: np.ndarray, rate: int):
        self._tail, self._chunk = rate // 4, 8 * rate
        self._size = 1 << (self._chunk + 2 * self._tail - 1).bit_length()
        self._response = np.fft.rfft(numerator, self._size) / np.fft.rfft(denominator, self._size)
        self._history = 0  # how many of the held samples have already been filtered
        self._held: np.ndarray | None = None

    def push(self, audio: np.ndarray) -> Iterator[np.ndarray]:
        """Adds float64 [C, W] and yields whole chunks of the filtered audio."""
        self._held = audio if self._held is None else np.concatenate([self._held, audio], axis=1)
        while self._held.shape[1] >= self._history + self._chunk:
            end = self._history + self._chunk
            yield self._filtered(self._held[:, :end])
            self._held, self._history = self._held[:, end - self._tail :], self._tail

    def flush(self) -> Iterator[np.ndarray]:
        """Yields the remaining filtered audio."""
        if self._held is not None and self._held.shape[1] > self._history:
            yield self._filtered(self._held)
        self._held, self._history = None, 0

    def _filtered(self, audio: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(audio, self._size) * self._response
        return np.fft.irfft(spectrum, self._size)[:, self._history : audio.shape[1]]
