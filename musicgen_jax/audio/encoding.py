"""Encodes audio for a listener, whole or while it is made: wav, flac, mp3, opus or bare samples."""

import io
import struct
from typing import Any

import numpy as np

from musicgen_jax.errors import UserError

# Media types by the names that OpenAI's interface has for formats.
MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "pcm": "audio/pcm",
}
_SNDFILE = {
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
}
# Other rates are raised to the next one of these.
_RATES = {
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "opus": (8000, 12000, 16000, 24000, 48000),
}
_MAX_WAV = 2**32 - 2**16  # bytes; a wav file counts them in 32 bits


class Encoder:
    """Audio piece by piece, int16 [C, W], to bytes that can be sent at once.

    A stream cannot go back to its beginning. So the header of a wav or flac stream says beforehand
    how long it is; the header of an mp3 stream does not.

    Args:
      form: a key of `MEDIA_TYPES`.
      sample_rate: of the samples, in Hz.
      channels: C.
      samples: how many there will be, per channel.
      comment: text for the file's comment; "pcm" has no place for one.

    Raises:
      UserError: the audio is too long, or has too many channels, for the format.
    """

    def __init__(
        self, form: str, sample_rate: int, channels: int, *, samples: int, comment: str = ""
    ):
        self._file = _Growing(patched=False)
        self._flac_samples = samples if form == "flac" else None
        self._sink = sink(self._file, form, sample_rate, channels, samples, comment)

    def push(self, samples: np.ndarray) -> bytes:
        """Adds samples, int16 [C, W], and returns the bytes that have become final."""
        self._sink.write(samples)
        return self._taken()

    def finish(self) -> bytes:
        """Returns the last bytes."""
        self._sink.close()
        return self._taken()

    def _taken(self) -> bytes:
        data = bytearray(self._file.take())
        if data and self._flac_samples is not None:
            # STREAMINFO, at byte 8 of the file: 36 bits from the middle of its byte 13 on.
            data[21] |= self._flac_samples >> 32
            data[22:26] = struct.pack(">I", self._flac_samples & (2**32 - 1))
            self._flac_samples = None
        return bytes(data)


def encode(form: str, samples: np.ndarray, sample_rate: int, *, comment: str = "") -> bytes:
    """A whole file of samples, int16 [C, W]; the arguments are those of `Encoder`."""
    file = _Growing(patched=True)
    into = sink(file, form, sample_rate, samples.shape[0], samples.shape[1], comment)
    into.write(samples)
    into.close()
    return file.take()


def sink(
    file: io.RawIOBase, form: str, sample_rate: int, channels: int, samples: int, comment: str
) -> "_Bare | _Sndfile":
    """An encoder: `write` takes samples, int16 [C, W], and `close` completes the file.

    Args:
      file: can seek; for libsndfile, which does not notice when writing fails.
      form: a key of `MEDIA_TYPES`.
      sample_rate: of the samples, in Hz.
      channels: C.
      samples: how many there will be, per channel.
      comment: text for the file's comment.

    Raises:
      UserError: as `Encoder`.
    """
    if form in _SNDFILE:
        return _Sndfile(file, form, sample_rate, channels, comment)
    if form == "wav":
        file.write(_wav_header(sample_rate, channels, samples, comment))
    return _Bare(file)


class _Bare:
    """Little-endian samples as they are."""

    def __init__(self, file: io.RawIOBase):
        self._file = file

    def write(self, samples: np.ndarray) -> None:
        self._file.write(samples.astype("<i2").T.tobytes())

    def close(self) -> None:
        pass


class _Sndfile:
    """A format that libsndfile writes."""

    def __init__(
        self, file: io.RawIOBase, form: str, sample_rate: int, channels: int, comment: str
    ):
        import soundfile

        rates = _RATES.get(form, (sample_rate,))
        self._from, self._to = sample_rate, next((r for r in rates if r >= sample_rate), rates[-1])
        self._resample: Any = None
        if self._to != self._from:
            import soxr

            self._resample = soxr.ResampleStream(self._from, self._to, channels, dtype="float32")
        kind, subtype = _SNDFILE[form]
        if subtype not in soundfile.available_subtypes(kind):
            raise UserError(f"this machine's libsndfile cannot write {form}: install a newer one")
        try:
            self._file = soundfile.SoundFile(
                file,  # type: ignore[arg-type]
                "w",
                self._to,
                channels,
                subtype,
                format=kind,
            )
        except RuntimeError as error:
            raise UserError(
                f"{form} does not support {channels} channels at {self._to} Hz"
            ) from error
        if comment:
            self._file.comment = comment

    def write(self, samples: np.ndarray, last: bool = False) -> None:
        if self._resample is None:
            self._file.write(np.ascontiguousarray(samples.T))
            return
        scaled = samples.T.astype(np.float32) / np.float32(2**15)
        self._file.write(self._resample.resample_chunk(np.ascontiguousarray(scaled), last))

    def close(self) -> None:
        if self._resample is not None:
            self.write(np.zeros((self._file.channels, 0), np.int16), last=True)
        self._file.close()


class _Growing(io.RawIOBase):
    """A file for libsndfile whose bytes are taken away as they come.

    When it is closed, libsndfile goes back to write lengths into the header. In a file that is
    `patched` these are kept; in a stream that part has already been sent.
    """

    def __init__(self, *, patched: bool):
        self._patched = patched
        self._bytes = bytearray()
        self._taken = self._position = 0

    def take(self) -> bytes:
        """The bytes that have come since the last call."""
        data, self._taken = bytes(self._bytes), self._taken + len(self._bytes)
        self._bytes.clear()
        return data

    def write(self, data: Any) -> int:
        data, end = bytes(data), self._taken + len(self._bytes)
        if self._position == end:
            self._bytes += data
        elif self._patched:
            at = self._position - self._taken
            self._bytes[at : at + len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        start = {0: 0, 1: self._position, 2: self._taken + len(self._bytes)}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True


def check_wav(channels: int, samples: int) -> None:
    """UserError if a wav file cannot hold `samples` per channel, of 16 bits."""
    if 2 * channels * samples > _MAX_WAV:
        raise UserError("a wav file has at most 4 GiB: ask for flac")


def _wav_header(sample_rate: int, channels: int, samples: int, comment: str) -> bytes:
    """Everything in front of the samples; the comment is a chunk LIST INFO ICMT."""
    size = 2 * channels * samples
    check_wav(channels, samples)
    form = struct.pack(
        "<HHIIHH", 1, channels, sample_rate, 2 * channels * sample_rate, 2 * channels, 16
    )
    chunks = _chunk(b"fmt ", form)
    if comment:
        chunks += _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", comment.encode() + b"\0"))
    chunks += b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) + size) + b"WAVE" + chunks


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
