"""The level of audio: measured and set, all at once or piece by piece.

Names, defaults and formulas follow audiocraft's `data/audio_utils.py`. Audio is float32 [C, W],
nominally within -1 and 1. No jax here.
"""

import math
from collections.abc import Iterator

import numpy as np

from musicgen_jax.errors import UserError

STRATEGIES = ("peak", "clip", "rms", "loudness")
_ENERGY_FLOOR = 2e-3  # root mean square below which audio counts as silence and stays as it is


def checked(audio: np.ndarray) -> np.ndarray:
    """The audio as float32 [C, W], or a UserError."""
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

    Silence stays as it is under every strategy, where audiocraft divides by zero.

    Args:
      audio: float [C, W].
      sample_rate: in Hz.
      strategy: one of
        "peak": scales the largest sample to `-peak_clip_headroom_db` dB of full scale;
        "clip": does not scale, and clips at `-peak_clip_headroom_db` dB;
        "rms": scales the mean of the channels to a root mean square of `-rms_headroom_db` dB;
        "loudness": scales to `-loudness_headroom_db` LUFS (ITU-R BS.1770). Audio shorter than
        0.4 s, which has no loudness (audiocraft fails), and nearly silent audio is not scaled.
      loudness_compressor: after "loudness", squeezes peaks by tanh rather than cut them.
      normalize: if False, "peak" and "rms" only ever make audio quieter.
      peak_clip_headroom_db: for "peak" and "clip".
      rms_headroom_db: for "rms".
      loudness_headroom_db: for "loudness".

    Returns:
      float32 [C, W], within -1 and 1 unless `peak_clip_headroom_db` is negative.

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
    """Measures, piece by piece, the level that a strategy of `normalize_audio` goes by.

    Args:
      strategy: see there.
      channels: C.
      sample_rate: in Hz.
    """

    def __init__(self, strategy: str, channels: int, sample_rate: int):
        if strategy not in STRATEGIES:
            raise UserError(f"unknown strategy {strategy!r}: use one of {', '.join(STRATEGIES)}")
        self.strategy = strategy
        self.samples = 0  # of each channel
        self.lowest, self.highest = math.inf, -math.inf
        self._squares = 0.0
        # Clipped, as audiocraft measures.
        self._loudness = (
            LoudnessMeter(channels, sample_rate, clip=True) if strategy == "loudness" else None
        )

    def update(self, audio: np.ndarray) -> None:
        """Takes the next samples, finite float32 [C, W], W at least 1."""
        self.samples += audio.shape[1]
        self.lowest = min(self.lowest, float(audio.min()))
        self.highest = max(self.highest, float(audio.max()))
        heard = audio.mean(axis=0, keepdims=True) if self.strategy == "rms" else audio
        self._squares += float(np.mean(np.square(heard, dtype=np.float64))) * audio.shape[1]
        if self._loudness:
            self._loudness.update(audio)

    def level(self) -> float:
        """What `apply_level` goes by; the audio has ended."""
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
    """`normalize_audio` of a part of the audio, by the level of all of it.

    Every sample is changed by itself, and a larger one stays the larger.

    Args:
      audio: float32 [C, W].
      strategy: see there, as all below.
      level: from `Meter.level`.
      loudness_compressor: see there.
      normalize: see there.
      peak_clip_headroom_db: see there.
      rms_headroom_db: see there.
      loudness_headroom_db: see there.

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
    return np.multiply(audio, target / level, dtype=np.float64)  # the factor may exceed float32


# --- Loudness (ITU-R BS.1770-4) ---------------------------------------------------------------


def loudness(audio: np.ndarray, sample_rate: int, *, clip: bool = False) -> float:
    """Integrated loudness by ITU-R BS.1770-4.

    K-weighting, then the mean power of blocks of 0.4 s, three quarters overlapping, first of those
    above -70 LUFS, then of those within 10 LU of that mean. Filters and blocks are those of
    torchaudio's `Loudness`, which audiocraft uses: the biquads of the RBJ cookbook with round
    numbers stand in for the recommendation's coefficients (known for 48 kHz only).

    Args:
      audio: float [C, W], at most five channels: left, right, centre and the two surrounds.
      sample_rate: in Hz, above 3000.
      clip: clip at full scale after each filter, as torchaudio does and BS.1770 does not; lowers
        the loudness of audio near full scale by a fraction of a decibel.

    Returns:
      LUFS; minus infinity if no block passes, and for audio shorter than one block.
    """
    audio = checked(audio)
    meter = LoudnessMeter(audio.shape[0], sample_rate, clip=clip)
    meter.update(audio)
    return meter.loudness()


class LoudnessMeter:
    """`loudness` of audio that comes piece by piece; how it is cut changes no bit.

    Args:
      channels: C, at most five.
      sample_rate: in Hz, above 3000.
      clip: see `loudness`.
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
        self._squares = np.zeros((channels, 0))  # of weighted samples, those of later blocks
        self._powers: list[np.ndarray] = []

    def update(self, audio: np.ndarray) -> None:
        """Takes the next samples, float [C, W]."""
        self._weigh(audio.astype(np.float64), self._filters)

    def loudness(self) -> float:
        """LUFS of all of it; call it once, at the end."""
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
    """+4 dB above 1500 Hz, Q 1/sqrt(2): the head. Numerator and denominator."""
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
    """Second order above 38 Hz, Q 0.5: the ear at low frequencies. Numerator and denominator."""
    w = 2 * math.pi * 38 / rate
    cos, alpha = math.cos(w), math.sin(w)  # alpha = sin(w) / (2 Q)
    numerator = (1 + cos) / 2 * np.array([1, -2, 1])
    return numerator, np.array([1 + alpha, -2 * cos, 1 - alpha])


class _Biquad:
    """A second-order recursive filter, by FFT: numpy has no recursion that is not a Python loop.

    Exact to rounding: the responses above die away by 1e-20 within a quarter of a second, so each
    chunk needs just so much history before it and so much silence against wrapping behind it.
    """

    def __init__(self, numerator: np.ndarray, denominator: np.ndarray, rate: int):
        self._tail, self._chunk = rate // 4, 8 * rate
        self._size = 1 << (self._chunk + 2 * self._tail - 1).bit_length()
        self._response = np.fft.rfft(numerator, self._size) / np.fft.rfft(denominator, self._size)
        self._history = 0  # how many of the samples held have been filtered before
        self._held: np.ndarray | None = None

    def push(self, audio: np.ndarray) -> Iterator[np.ndarray]:
        """Takes float64 [C, W] and gives out whole chunks of the filtered audio."""
        self._held = audio if self._held is None else np.concatenate([self._held, audio], axis=1)
        while self._held.shape[1] >= self._history + self._chunk:
            end = self._history + self._chunk
            yield self._filtered(self._held[:, :end])
            self._held, self._history = self._held[:, end - self._tail :], self._tail

    def flush(self) -> Iterator[np.ndarray]:
        """Gives out the rest."""
        if self._held is not None and self._held.shape[1] > self._history:
            yield self._filtered(self._held)
        self._held, self._history = None, 0

    def _filtered(self, audio: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(audio, self._size) * self._response
        return np.fft.irfft(spectrum, self._size)[:, self._history : audio.shape[1]]
