"""Writes an audio file of any length piece by piece, in bounded memory."""

import io
import os
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from musicgen_jax import files
from musicgen_jax.audio.encoding import sink
from musicgen_jax.audio.files import format_of, to_int16
from musicgen_jax.audio.level import Meter, apply_level, checked
from musicgen_jax.errors import UserError, user_error


class GrowingFile:
    """A sound file written piece by piece; equal to the file that `write` makes.

    The level depends on all samples, so they are stored as float32 in a temporary file until the
    end. Memory use does not depend on the length.

    Args:
      path: the file, with a suffix that `write` takes. It appears complete at the end and replaces
        an existing file.
      channels: C, the number of channels.
      sample_rate: in Hz.
      strategy: how to set the level, see `normalize_audio`; "loudness" uses its compressor.
      samples: total number of samples per channel. A wav file cannot hold more than 4 GiB.
      aside: path of the temporary file. The first `write` creates it and `finish` removes it.

    Raises:
      UserError: the suffix is another one, or the file would be too long.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        channels: int,
        sample_rate: int,
        strategy: str,
        *,
        samples: int,
        aside: str | os.PathLike[str],
    ):
        self.path, self.aside = Path(path), Path(aside)
        self.channels, self.sample_rate = channels, sample_rate
        self._form = format_of(self.path)
        if self._form == "wav" and 2 * channels * samples > 2**32 - 4096:
            raise UserError(f"cannot write {path}: a .wav file has at most 4 GiB; write a .flac")
        self._meter = Meter(strategy, channels, sample_rate)
        self._file: io.BufferedWriter | None = None

    def write(self, audio: np.ndarray) -> None:
        """Adds the next samples, float [C, W]; W can be 0."""
        if not audio.size:
            return
        audio = checked(audio)
        if not np.isfinite(audio).all():
            raise UserError("audio holds samples that are NaN or infinite")
        self._meter.update(audio)
        with user_error("write", self.aside):
            if self._file is None:
                self.aside.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.aside.open("wb")
            self._file.write(np.ascontiguousarray(audio.T).tobytes())

    def finish(self, comment: str = "") -> Path:
        """Sets the level, writes the file and removes the temporary samples.

        Args:
          comment: text for the file's comment.
        """
        if self._file is None:
            raise UserError(f"cannot write {self.path}: there are no samples")
        with user_error("write", self.path):
            self._file.close()
            with files.new_file(self.path) as file:
                self._encode(_Recorder(file), comment)
            self.aside.unlink()
        return self.path

    def _encode(self, file: "_Recorder", comment: str) -> None:
        level = self._meter.level()
        set_level = partial(
            apply_level, strategy=self._meter.strategy, level=level, loudness_compressor=True
        )
        highest = float(set_level(np.array([[self._meter.highest]], np.float32))[0, 0])
        total = self.aside.stat().st_size // (4 * self.channels)
        try:
            encoder = sink(file, self._form, self.sample_rate, self.channels, total, comment)
            with self.aside.open("rb") as samples:
                while block := samples.read(4 * self.channels << 18):
                    audio = np.frombuffer(block, np.float32).reshape(-1, self.channels).T
                    encoder.write(to_int16(set_level(audio), highest))
                    file.check()
            encoder.close()
        except (RuntimeError, UserError) as error:  # libsndfile's, perhaps after a full disk
            file.check()
            raise UserError(f"cannot write {self.path}: {error}") from error
        file.check()


class _Recorder(io.RawIOBase):
    """A file for libsndfile that remembers write errors: libsndfile does not report them."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._error: OSError | None = None

    def check(self) -> None:
        """Raises the first write error, if there was one."""
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
