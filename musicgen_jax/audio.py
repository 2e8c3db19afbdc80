"""Waveforms in and out of files, and from one rate, channel count or loudness to another.

Audio is float32 [C, W], nominally within -1 and 1. Names, defaults and formulas follow audiocraft's
`data/audio.py` and `data/audio_utils.py`, so that a file written here sounds as loud as theirs.
No jax here, and soundfile and soxr load on first use.
"""

import contextlib
import dataclasses
import io
import os
import secrets
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.level import STRATEGIES, Meter, apply_level, checked, loudness, normalize_audio

__all__ = [
    "MAX_SAMPLES",
    "MAX_SECONDS",
    "STRATEGIES",
    "AudioFileInfo",
    "GrowingFile",
    "convert_audio",
    "convert_channels",
    "info",
    "loudness",
    "normalize_audio",
    "read",
    "resample",
    "write",
]

MAX_SECONDS = 3600  # longer files are refused: nothing here hears more than minutes
MAX_SAMPLES = 2**29  # over all channels: 2 GiB of float32; an hour of stereo at 48 kHz has 0.35e9

_FORMATS = {".wav": "WAV", ".flac": "FLAC"}


# --- Files ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AudioFileInfo:
    """What the header of an audio file says."""

    sample_rate: int  # in Hz
    frames: int  # samples of each channel
    channels: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.sample_rate


def info(path: str | os.PathLike) -> AudioFileInfo:
    """Reads the header of an audio file of any length.

    Raises:
      UserError: there is no such file, it is no audio, holds no samples or does not say how many.
    """
    with _opened(path) as file:
        return AudioFileInfo(file.samplerate, file.frames, file.channels)


def read(
    path: str | os.PathLike, *, start: float = 0.0, seconds: float | None = None
) -> tuple[np.ndarray, int]:
    """Reads an audio file: wav, flac, ogg, mp3 and whatever else libsndfile knows.

    Args:
      path: the file.
      start: seconds to leave out at the beginning.
      seconds: reads no more than so many, so that the file may be of any length.

    Returns:
      float32 [C, W] and the sample rate in Hz.

    Raises:
      UserError: there is no such file, it is no audio, holds no samples or NaN or infinite ones,
        or is longer than `MAX_SECONDS` or `MAX_SAMPLES` (told by its header, before it is read).
    """
    with _opened(path) as file:
        rate, first = file.samplerate, int(start * file.samplerate)
        frames = file.frames - first
        if frames <= 0:
            raise UserError(f"cannot read {path} from {start:g} s on: it ends before")
        if seconds is not None:
            frames = min(frames, int(seconds * rate) + 1)
        if frames > min(MAX_SECONDS * rate, MAX_SAMPLES // file.channels):
            raise UserError(
                f"{path} is too long: {file.channels} channels of {frames / rate:.0f} s at "
                f"{rate} Hz; at most {MAX_SECONDS} s and {MAX_SAMPLES} samples fit"
            )
        if first:
            file.seek(first)
        samples = file.read(frames, dtype="float32", always_2d=True)
    if not len(samples):
        raise UserError(f"cannot read {path}: it holds no samples")
    audio = np.ascontiguousarray(samples.T)
    if not np.isfinite(audio).all():
        raise UserError(f"cannot use {path}: it holds samples that are NaN or infinite")
    return audio, rate


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator:
    """The soundfile of a path; what libsndfile says against it becomes a UserError."""
    import soundfile

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait forever
            raise UserError(f"cannot read {path}: not a file")
        open(path, "rb").close()  # libsndfile would not say why it cannot
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames == np.iinfo(np.int64).max:  # what libsndfile says for "unknown"
                raise UserError(f"cannot read {path}: it was streamed and does not say its length")
            if not file.frames:
                raise UserError(f"cannot read {path}: it holds no samples")
            yield file
    except (RuntimeError, TypeError) as error:  # TypeError: the suffix .raw, which has no header
        raise UserError(f"cannot read {path}: not an audio file, or a broken one") from error


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


def _to_int16(audio: np.ndarray, highest: float | None = None) -> np.ndarray:
    """Full scale is 2^15, or 2^15 - 1 if a sample would not fit, as in audiocraft.

    `highest` is the largest sample of all, where `audio` is a part.
    """
    audio = np.clip(audio, -1, 1)
    highest = audio.max() if highest is None else highest
    full = 2.0**15 if np.round(np.float32(highest) * np.float32(2.0**15)) < 2**15 else 2.0**15 - 1
    return np.round(audio * full).astype(np.int16)


class GrowingFile:
    """A 16-bit wav or flac file written piece by piece, the same as `write` makes at once.

    Its level depends on all of it, so the samples wait as float32 in a file aside until the end.
    Memory stays the same whatever the length.

    Args:
      path: ends in .wav or .flac; appears at the end, whole, over an older file if there is one.
      channels: C.
      sample_rate: in Hz.
      strategy: how the level is set, see `normalize_audio`; "loudness" with its compressor.
      samples: how long it will be; a wav file cannot hold more than 4 GiB.
      aside: the file where samples wait; made at the first of them, gone at the end.

    Raises:
      UserError: the suffix is another, or it will be too long.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        channels: int,
        sample_rate: int,
        strategy: str,
        *,
        samples: int,
        aside: str | os.PathLike,
    ):
        self.path, self.aside = Path(path), Path(aside)
        self.channels, self.sample_rate = channels, sample_rate
        if self.path.suffix.lower() not in _FORMATS:
            raise UserError(f"cannot write {path}: the name must end in .wav or .flac")
        if self.path.suffix.lower() == ".wav" and 2 * channels * samples > 2**32 - 4096:
            raise UserError(f"cannot write {path}: a .wav file has at most 4 GiB; write a .flac")
        self._meter = Meter(strategy, channels, sample_rate)
        self._file: io.BufferedWriter | None = None

    def write(self, audio: np.ndarray) -> None:
        """Takes the next samples, float [C, W], W from 0."""
        if not audio.size:
            return
        audio = checked(audio)
        if not np.isfinite(audio).all():
            raise UserError("audio holds samples that are NaN or infinite")
        self._meter.update(audio)
        try:
            if self._file is None:
                self.aside.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.aside.open("wb")
            self._file.write(np.ascontiguousarray(audio.T).tobytes())
        except OSError as error:
            raise UserError(f"cannot write {self.aside}: {error.strerror}") from error

    def finish(self) -> Path:
        """Sets the level, writes the file and removes what stood aside."""
        part = self.path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            if self._file is None:
                raise UserError(f"cannot write {self.path}: there are no samples")
            self._file.close()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("wb") as file:
                    self._encode(_Recorder(file))
                os.replace(part, self.path)
            finally:
                part.unlink(missing_ok=True)
            self.aside.unlink()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        return self.path

    def _encode(self, file: "_Recorder") -> None:
        import soundfile

        level = self._meter.level()
        set_level = partial(
            apply_level, strategy=self._meter.strategy, level=level, loudness_compressor=True
        )
        highest = float(set_level(np.array([[self._meter.highest]], np.float32))[0, 0])
        form = _FORMATS[self.path.suffix.lower()]
        try:
            with (
                self.aside.open("rb") as samples,
                soundfile.SoundFile(
                    file,  # type: ignore[arg-type]
                    "w",
                    self.sample_rate,
                    self.channels,
                    "PCM_16",
                    format=form,
                ) as encoder,
            ):
                while block := samples.read(4 * self.channels << 18):
                    audio = np.frombuffer(block, np.float32).reshape(-1, self.channels).T
                    encoder.write(_to_int16(set_level(audio), highest).T)
                    file.check()
        except RuntimeError as error:
            file.check()
            raise UserError(
                f"cannot write {self.path}: {form} takes no {self.channels} channels at "
                f"{self.sample_rate} Hz"
            ) from error
        file.check()


class _Recorder(io.RawIOBase):
    """A file for libsndfile that remembers what went wrong: libsndfile does not tell."""

    def __init__(self, file: io.BufferedWriter):
        self._file = file
        self._error: OSError | None = None

    def check(self) -> None:
        """Raises what went wrong, if anything did."""
        if self._error is None:
            try:
                self._file.flush()
            except OSError as error:
                self._error = error
        if self._error is not None:
            raise self._error

    def write(self, data) -> int:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True


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
    audio = checked(audio)
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
    audio = checked(audio)
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
