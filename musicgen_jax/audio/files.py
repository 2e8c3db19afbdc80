"""Reads and writes whole audio files."""

import contextlib
import dataclasses
import io
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from musicgen_jax import files
from musicgen_jax.audio import mp3
from musicgen_jax.audio.encoding import encode
from musicgen_jax.audio.level import normalize_audio
from musicgen_jax.audio.samples import MAX_SAMPLES
from musicgen_jax.errors import UserError, user_error

MAX_SECONDS = 3600  # longer files are not read whole: only a few minutes are used

FORMATS = {".wav": "wav", ".flac": "flac", ".mp3": "mp3", ".ogg": "opus"}  # see `encoding`


# --- Files ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AudioFileInfo:
    """The header of an audio file; for mp3 files the length is counted, not read."""

    sample_rate: int  # in Hz
    frames: int  # samples per channel
    channels: int

    @property
    def duration(self) -> float:
        """The length in seconds."""
        return self.frames / self.sample_rate


def info(path: str | os.PathLike[str]) -> AudioFileInfo:
    """Reads the header of an audio file of any length.

    Raises:
      UserError: the file does not exist, is not audio, has no samples, or has an unknown length.
    """
    with opened(path) as file:
        return AudioFileInfo(file.samplerate, file.frames, file.channels)


def read(
    path: str | os.PathLike[str], *, start: float = 0.0, seconds: float | None = None
) -> tuple[np.ndarray, int]:
    """Reads an audio file: wav, flac, ogg, mp3 or any other format that libsndfile supports.

    Args:
      path: the file.
      start: seconds to skip at the beginning.
      seconds: maximum number of seconds to read (default: no limit). If set, the file can have any
        length.

    Returns:
      float32 [C, W] and the sample rate in Hz.

    Raises:
      UserError: the file does not exist, is not audio, is damaged or cut off, has no samples, has
        NaN or infinite samples, or is longer than `MAX_SECONDS` (unless `seconds` is set) or
        `MAX_SAMPLES`. The length is checked from the header, before the samples are read.
    """
    longest = MAX_SECONDS if seconds is None else math.inf
    return _samples(opened(path), path, start, seconds, longest, MAX_SAMPLES)


def read_bytes(data: bytes, name: str, *, longest: float, most: int) -> tuple[np.ndarray, int]:
    """Reads audio that came as the bytes of a file; nothing is written to the disk.

    Args:
      data: the file.
      name: the file's name in messages.
      longest: most seconds that are allowed.
      most: most samples that are allowed, over all channels.

    Returns:
      float32 [C, W] and the sample rate in Hz.

    Raises:
      UserError: as `read`.
    """
    source = mp3.corrected_bytes(data) if data.startswith((b"\xff", b"ID3")) else None
    sound = _decoder(source or io.BytesIO(data), name)
    return _samples(sound, name, 0.0, None, longest, most)


def _samples(
    sound: contextlib.AbstractContextManager,
    name: str | os.PathLike[str],
    start: float,
    seconds: float | None,
    longest: float,
    most: int,
) -> tuple[np.ndarray, int]:
    with sound as file:
        rate, first = file.samplerate, int(start * file.samplerate)
        frames = file.frames - first
        if frames <= 0:
            raise UserError(f"cannot read {name} from {start:g} s on: it ends earlier")
        if seconds is not None:
            frames = min(frames, int(seconds * rate) + 1)
        if frames > min(longest * rate, most // file.channels):
            raise UserError(
                f"{name} is too long: {file.channels} channels of {frames / rate:.0f} s at "
                f"{rate} Hz; at most {min(longest, most // file.channels / rate):.0f} s fit: cut it"
            )
        if first:
            file.seek(first)
        samples = file.read(frames, dtype="float32", always_2d=True)
    if len(samples) < frames - rate // 10:  # the length of an mp3 file can be off by a few frames
        ends, whole = ((first + n) / rate for n in (len(samples), frames))
        raise UserError(f"cannot read {name}: damaged or cut off after {ends:.1f} of {whole:.1f} s")
    if not len(samples):
        raise UserError(f"cannot read {name}: it holds no samples")
    audio = np.ascontiguousarray(samples.T)
    if not np.isfinite(audio).all():
        raise UserError(f"cannot use {name}: it holds samples that are NaN or infinite")
    return audio, rate


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator:
    """Opens a path with soundfile; raises a UserError if libsndfile refuses the file."""
    with user_error("read", path):
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait forever
            raise UserError(f"cannot read {path}: not a file")
        opened = open(path, "rb")  # noqa: SIM115 - libsndfile would not report the reason
    with opened:
        # As bytes, since a file name need not be valid text.
        source = os.fsencode(path) if os.name == "posix" else os.fspath(path)
        if _may_be_mp3(opened, path):
            source = mp3.corrected(opened) or source
        with _decoder(source, path) as file:
            yield file


@contextlib.contextmanager
def _decoder(source, name: str | os.PathLike[str]) -> Iterator:
    """A path as bytes or a file, as soundfile decodes it."""
    import soundfile

    try:
        with soundfile.SoundFile(source) as file:  # type: ignore[arg-type]
            if file.frames == np.iinfo(np.int64).max:  # libsndfile's value for "unknown"
                raise UserError(f"cannot read {name}: it was streamed and does not say its length")
            if not file.frames:
                raise UserError(
                    f"cannot read {name}: it holds no samples, or its header says so because "
                    "the recording was cut off (ffmpeg -i IN OUT.wav repairs that)"
                )
            yield file
    except (RuntimeError, TypeError) as error:  # TypeError: the suffix .raw, without a header
        raise UserError(
            f"cannot read {name}: not an audio file that libsndfile can read (wav, flac, ogg, "
            "mp3, aiff), or damaged: convert it, for example with ffmpeg -i IN OUT.wav"
        ) from error


def _may_be_mp3(file: BinaryIO, path: str | os.PathLike[str]) -> bool:
    start = file.read(2)
    return bool(start) and (
        os.fspath(path).lower().endswith(".mp3") or (start[0] == 0xFF and start[-1] >= 0xE0)
    )


def write(
    path: str | os.PathLike[str],
    audio: np.ndarray,
    sample_rate: int,
    strategy: str = "peak",
    *,
    loudness_compressor: bool = False,
    normalize: bool = True,
    peak_clip_headroom_db: float = 1,
    rms_headroom_db: float = 18,
    loudness_headroom_db: float = 14,
    comment: str = "",
) -> Path:
    """Normalises audio and writes it: a 16-bit wav or flac, an mp3 or an ogg file, by its suffix.

    Creates missing parent folders. The file appears complete or not at all, and replaces an
    existing file.

    Args:
      path: the file; must end in .wav, .flac, .mp3 or .ogg (Opus).
      audio: float [C, W].
      sample_rate: in Hz.
      strategy: how to set the level; this and the other options are those of `normalize_audio`.
      loudness_compressor: for "loudness": squeezes peaks with tanh.
      normalize: for "peak" and "rms": if False, audio only ever gets quieter.
      peak_clip_headroom_db: headroom for "peak" and "clip".
      rms_headroom_db: headroom for "rms".
      loudness_headroom_db: headroom for "loudness".
      comment: text for the file's comment, see `clip_settings`.

    Returns:
      The path.

    Raises:
      UserError: the suffix is another one, the path cannot be written, or `audio` is empty,
        not [C, W], not finite, or has more channels than the format supports.
    """
    path = Path(path)
    form = format_of(path)
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
    try:  # in memory first, since libsndfile does not report a full disk
        encoded = encode(form, to_int16(audio), sample_rate, comment=comment)
    except UserError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    files.write_bytes(path, encoded)
    return path


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that a file's suffix asks for, a key of `encoding.MEDIA_TYPES`.

    Raises:
      UserError: nothing is written under such a suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        *others, last = FORMATS
        raise UserError(f"cannot write {path}: the name must end in {', '.join(others)} or {last}")
    return FORMATS[suffix]


def to_int16(audio: np.ndarray, highest: float | None = None) -> np.ndarray:
    """Converts to int16; full scale is 2^15, or 2^15 - 1 if a sample would not fit (audiocraft).

    `highest` is the largest sample of the whole audio, if `audio` is only a part of it.
    """
    audio = np.clip(audio, -1, 1)
    highest = audio.max() if highest is None else highest
    full = 2.0**15 if np.round(np.float32(highest) * np.float32(2.0**15)) < 2**15 else 2.0**15 - 1
    return np.round(audio * full).astype(np.int16)
