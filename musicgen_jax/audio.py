"""Waveforms in and out of files, and from one rate, channel count or loudness to another.

Audio is float32 [C, W], nominally within -1 and 1. Names, defaults and formulas follow audiocraft's
`data/audio.py` and `data/audio_utils.py`, so that a file written here sounds as loud as theirs.
No jax here, and soundfile and soxr load on first use.
"""

import io
import math
import os
import secrets
import stat
from pathlib import Path

import numpy as np

from musicgen_jax.errors import UserError

MAX_SECONDS = 3600  # longer files are refused: nothing here hears more than minutes
MAX_SAMPLES = 2**29  # over all channels: 2 GiB of float32; an hour of stereo at 48 kHz has 0.35e9
STRATEGIES = ("peak", "clip", "rms", "loudness")

_FORMATS = {".wav": "WAV", ".flac": "FLAC"}
_ENERGY_FLOOR = 2e-3  # root mean square below which audio counts as silence and stays as it is


# --- Files ------------------------------------------------------------------------------------


def read(path: str | os.PathLike, *, seconds: float | None = None) -> tuple[np.ndarray, int]:
    """Reads an audio file: wav, flac, ogg, mp3 and whatever else libsndfile knows.

    Args:
      path: the file.
      seconds: reads no more than the beginning, so that the file may be of any length.

    Returns:
      float32 [C, W] and the sample rate in Hz.

    Raises:
      UserError: there is no such file, it is no audio, holds no samples or NaN or infinite ones,
        or is longer than `MAX_SECONDS` or `MAX_SAMPLES` (told by its header, before it is read).
    """
    import soundfile

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait forever
            raise UserError(f"cannot read {path}: not a file")
        open(path, "rb").close()  # libsndfile would not say why it cannot
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        with soundfile.SoundFile(path) as file:
            rate, frames = file.samplerate, file.frames
            if frames == np.iinfo(np.int64).max:  # what libsndfile says for "unknown"
                raise UserError(f"cannot read {path}: it was streamed and does not say its length")
            if seconds is not None:
                frames = min(frames, int(seconds * rate) + 1)
            if frames > min(MAX_SECONDS * rate, MAX_SAMPLES // file.channels):
                raise UserError(
                    f"{path} is too long: {file.channels} channels of {frames / rate:.0f} s at "
                    f"{rate} Hz; at most {MAX_SECONDS} s and {MAX_SAMPLES} samples fit"
                )
            samples = file.read(frames, dtype="float32", always_2d=True)
    except (RuntimeError, TypeError) as error:  # TypeError: the suffix .raw, which has no header
        raise UserError(f"cannot read {path}: not an audio file, or a broken one") from error
    if not len(samples):
        raise UserError(f"cannot read {path}: it holds no samples")
    audio = np.ascontiguousarray(samples.T)
    if not np.isfinite(audio).all():
        raise UserError(f"cannot use {path}: it holds samples that are NaN or infinite")
    return audio, rate


def write(
    path: str | os.PathLike,
    audio: np.ndarray,
    sample_rate: int,
    strategy: str = "peak",
    *,
    loudness_compressor: bool = False,
    normalize: bool = True,
    peak_clip_headroom_db: float = 1,
    rms_headroom_db: float = 18,
    loudness_headroom_db: float = 14,
) -> Path:
    """Writes a 16-bit wav or flac file, whichever the suffix says, with its level set.

    Folders on the way are made. The file appears whole or not at all: it is written beside its
    place and then renamed, over an older file if there is one.

    Args:
      path: ends in .wav or .flac.
      audio: float [C, W].
      sample_rate: in Hz.
      strategy: how the level is set; this and the rest as in `normalize_audio`.
      loudness_compressor: for "loudness".
      normalize: for "peak" and "rms".
      peak_clip_headroom_db: for "peak" and "clip".
      rms_headroom_db: for "rms".
      loudness_headroom_db: for "loudness".

    Returns:
      The path.

    Raises:
      UserError: the suffix is another, the path cannot be written, or `audio` is empty, not
        [C, W], not finite, or has more channels than the format.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"cannot write {path}: the name must end in .wav or .flac")
    audio = normalize_audio(
        audio,
        sample_rate,
        strategy,
        loudness_compressor=loudness_compressor,
        normalize=normalize,
        peak_clip_headroom_db=peak_clip_headroom_db,
        rms_headroom_db=rms_headroom_db,
        loudness_headroom_db=loudness_headroom_db,
    )
    # Encoded in memory, since libsndfile does not tell a full disk from success.
    encoded = io.BytesIO()
    form = _FORMATS[path.suffix.lower()]
    try:
        soundfile.write(encoded, _to_int16(audio).T, sample_rate, "PCM_16", format=form)
    except RuntimeError as error:
        raise UserError(
            f"cannot write {path}: {form} takes no {audio.shape[0]} channels at {sample_rate} Hz"
        ) from error
    aside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(encoded.getbuffer())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path


def _to_int16(audio: np.ndarray) -> np.ndarray:
    """Full scale is 2^15, or 2^15 - 1 if a sample would not fit, as in audiocraft."""
    audio = np.clip(audio, -1, 1)
    scaled = np.round(audio * 2.0**15)
    if scaled.max() >= 2**15:
        scaled = np.round(audio * (2.0**15 - 1))
    return scaled.astype(np.int16)


# --- Rate and channels ------------------------------------------------------------------------


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Band-limited resampling (soxr, HQ) along the last axis.

    Args:
      audio: float [C, W].
      from_rate: in Hz.
      to_rate: in Hz.

    Returns:
      float32 [C, floor(W * to_rate / from_rate)], audiocraft's length, but at least one sample.
    """
    audio = _checked(audio)
    if min(from_rate, to_rate) <= 0:
        raise UserError(f"sample rates must be positive, got {from_rate} and {to_rate}")
    if from_rate == to_rate:
        return audio
    import soxr

    length = max(1, audio.shape[1] * to_rate // from_rate)
    out = soxr.resample(np.ascontiguousarray(audio.T), from_rate, to_rate, quality="HQ").T
    missing = max(0, length - out.shape[1])  # soxr rounds a fraction of a sample down to none
    return np.ascontiguousarray(np.pad(out, ((0, 0), (0, missing)))[:, :length])


def convert_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """Gives audio [C, W] another number of channels.

    To one: the mean. From one: copies. To fewer: the first ones.

    Raises:
      UserError: more channels are wanted than there are, and there is more than one.
    """
    audio = _checked(audio)
    if channels < 1:
        raise UserError(f"the number of channels must be at least 1, got {channels}")
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return audio.mean(axis=0, keepdims=True)
    if audio.shape[0] == 1:
        return np.repeat(audio, channels, axis=0)
    if audio.shape[0] > channels:
        return audio[:channels]
    raise UserError(f"audio of {audio.shape[0]} channels cannot become {channels}")


def convert_audio(audio: np.ndarray, from_rate: int, to_rate: int, to_channels: int) -> np.ndarray:
    """Audio [C, W] at another rate (`resample`), then channel count (`convert_channels`)."""
    return convert_channels(resample(audio, from_rate, to_rate), to_channels)


def _checked(audio: np.ndarray) -> np.ndarray:
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
        0.4 s, which has no loudness (audiocraft fails), and all but silent audio is not scaled.
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
    audio = _checked(audio)
    if not np.isfinite(audio).all():
        raise UserError("audio holds samples that are NaN or infinite")
    peak = 10 ** (-peak_clip_headroom_db / 20)
    if strategy == "clip":
        audio = np.clip(audio, -peak, peak)
    elif strategy == "peak":
        audio = _scale(audio, peak, float(np.abs(audio).max()), normalize)
    elif strategy == "rms":
        rms = 10 ** (-rms_headroom_db / 20)
        audio = np.clip(_scale(audio, rms, _rms(audio.mean(axis=0)), normalize), -1, 1)
    elif strategy == "loudness":
        level = -math.inf
        if _rms(audio) >= _ENERGY_FLOOR:
            level = loudness(audio, sample_rate, clip=True)  # clipped, as audiocraft measures
        if level > -math.inf:
            audio = audio * 10 ** ((-loudness_headroom_db - level) / 20)
            audio = np.tanh(audio) if loudness_compressor else audio
        audio = np.clip(audio, -1, 1)
    else:
        raise UserError(f"unknown strategy {strategy!r}: use one of {', '.join(STRATEGIES)}")
    return audio.astype(np.float32)


def _rms(audio: np.ndarray) -> float:
    return math.sqrt(np.mean(np.square(audio, dtype=np.float64)))


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
    audio = _checked(audio)
    if audio.shape[0] > 5:
        raise UserError(f"loudness is defined for at most 5 channels, got {audio.shape[0]}")
    if sample_rate <= 3000:
        raise UserError(f"loudness needs a sample rate above 3000 Hz, got {sample_rate}")
    weighted = audio.astype(np.float64)
    for numerator, denominator in (_treble_shelf(sample_rate), _high_pass(sample_rate)):
        weighted = _biquad(weighted, numerator, denominator, sample_rate)
        if clip:
            weighted = np.clip(weighted, -1, 1)
    block = round(0.4 * sample_rate)
    step = round(0.25 * block)
    if audio.shape[1] < block:
        return -math.inf
    blocks = np.lib.stride_tricks.sliding_window_view(np.square(weighted), block, axis=1)
    gains = np.array([1.0, 1.0, 1.0, 1.41, 1.41])[: audio.shape[0]]
    power = gains @ blocks[:, ::step].mean(axis=-1)  # [blocks]
    power = power[_lufs(power) > -70]
    if not power.size:
        return -math.inf
    power = power[_lufs(power) > _lufs(power.mean()) - 10]
    return float(_lufs(power.mean()))


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


def _biquad(
    audio: np.ndarray, numerator: np.ndarray, denominator: np.ndarray, rate: int
) -> np.ndarray:
    """A second-order recursive filter, by FFT: numpy has no recursion that is not a Python loop.

    Exact to rounding: the responses above die away by 1e-20 within a quarter of a second, so each
    chunk needs just so much history before it and so much silence against wrapping behind it.
    """
    tail = rate // 4
    chunk = 8 * rate
    size = 1 << (chunk + 2 * tail - 1).bit_length()
    response = np.fft.rfft(numerator, size) / np.fft.rfft(denominator, size)
    out = np.empty_like(audio)
    for start in range(0, audio.shape[1], chunk):
        begin = max(0, start - tail)
        stop = min(start + chunk, audio.shape[1])
        filtered = np.fft.irfft(np.fft.rfft(audio[:, begin:stop], size) * response, size)
        out[:, start:stop] = filtered[:, start - begin : stop - begin]
    return out
