"""An audio file of any length, written piece by piece in bounded memory."""

import io
import os
import secrets
from functools import partial
from pathlib import Path

import numpy as np

from musicgen_jax.audio.files import FORMATS, to_int16
from musicgen_jax.audio.level import Meter, apply_level, checked
from musicgen_jax.errors import UserError


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
        if self.path.suffix.lower() not in FORMATS:
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
        form = FORMATS[self.path.suffix.lower()]
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
                    encoder.write(to_int16(set_level(audio), highest).T)
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
