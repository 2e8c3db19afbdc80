"""Codes in a file: a `.npz` of three plain arrays, no pickles.

    header   uint8, JSON: format, version, the codec's name, fingerprint and architecture, the
             length in samples and the shape [B, K, T] of the codes
    codes    uint8, every code in as many bits as the codec has, most significant first, in C order
    scales   float32 [B, segments], only from a codec that stores levels

A file from outside may hold anything: sizes are checked before memory is allocated for them.
"""

import dataclasses
import io
import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_jax import files
from musicgen_jax.config import EncodecConfig, from_dict, to_dict
from musicgen_jax.errors import UserError, reason
from musicgen_jax.nn.encodec.segments import segments

FORMAT, VERSION = "musicgen-jax codes", 1
SUFFIX = ".npz"
MAX_BYTES = 64 << 20  # six hours at 24 kb/s
_MAX_CODES = 1 << 25
_MAX_SEGMENTS = 1 << 20
_MAX_SECONDS = 10**7  # of a segment
_MAX_DIRECTORY = 4096  # bytes of the zip's directory, which has three entries
_FIELDS = {"format", "version", "codec", "fingerprint", "config", "length", "shape"}


@dataclasses.dataclass(frozen=True)
class EncodedAudio:
    """Clips as codes, with everything but the codec that `Codec.decode` needs.

    Attributes:
      codes: int32 [B, K, T]: the frames of all segments, one segment after the other.
      scales: float32 [B, number of segments], the segments' levels; None if the codec stores none.
      length: samples per channel of each clip, at the codec's rate.
      config: of the codec.
      codec: its name, "" if it has none.
      fingerprint: two codecs with the same fingerprint have the same codebooks, see
        `Codec.fingerprint`.
    """

    codes: np.ndarray
    scales: np.ndarray | None
    length: int
    config: EncodecConfig
    codec: str
    fingerprint: str

    @property
    def sample_rate(self) -> int:
        """Samples per second and channel."""
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        """C of the decoded audio."""
        return self.config.channels

    @property
    def bandwidth(self) -> float:
        """Kilobits per second of the codes, without the levels."""
        return self.codes.shape[1] * self.config.bandwidth_per_book


def write(path: str | os.PathLike[str], encoded: EncodedAudio) -> Path:
    """Writes codes. The file appears whole or not at all, and replaces an older one.

    Raises:
      UserError: the name does not end in .npz, there are more codes than `read` takes, or the path
        cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise UserError(f"cannot write {path}: the name must end in {SUFFIX}")
    if encoded.codes.size > _MAX_CODES:
        raise UserError(f"cannot write {path}: {encoded.codes.size} codes are too many for a file")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "codec": encoded.codec,
        "fingerprint": encoded.fingerprint,
        "config": to_dict(encoded.config),
        "length": encoded.length,
        "shape": encoded.codes.shape,
    }
    arrays: dict[str, Any] = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "codes": pack(encoded.codes, encoded.config.bits),
    }
    if encoded.scales is not None:
        arrays["scales"] = np.asarray(encoded.scales, np.float32)
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **arrays)
    files.write_bytes(path, data.getvalue())
    return path


def read(path: str | os.PathLike[str]) -> EncodedAudio:
    """Reads a file of `write`.

    Raises:
      UserError: there is no such file, or it is damaged, of another kind or another version.
    """
    data = files.read_bytes(path, MAX_BYTES)
    try:
        return _parse(data)
    except _Version as error:
        raise UserError(
            f"{path} has version {error}, but this musicgen-jax reads {VERSION}: use another "
            f"release"
        ) from None
    except Exception as error:  # damaged bytes fail in many ways
        raise UserError(
            f"{path} is not a file of codes from musicgen-jax, or it is damaged: {reason(error)}"
        ) from None


class _Version(Exception):
    """Another version of the format; the message is its number."""


def _parse(data: bytes) -> EncodedAudio:
    arrays = _arrays(data)
    header = json.loads(arrays["header"].tobytes())
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError("its header is of another kind")
    if header.get("version") != VERSION:
        raise _Version(str(header.get("version"))[:20])
    if header.keys() != _FIELDS:
        raise ValueError("its header has the wrong fields")
    texts, length, shape = (
        (header["codec"], header["fingerprint"]),
        header["length"],
        header["shape"],
    )
    if not all(isinstance(text, str) and len(text) <= 200 and text.isprintable() for text in texts):
        raise ValueError("its header has a bad name")
    sizes = [length, *shape] if isinstance(shape, list) and len(shape) == 3 else []
    if not sizes or not all(type(n) is int and 0 < n < 2**40 for n in sizes):
        raise ValueError("its header has bad sizes")
    config = _config(header["config"])

    B, K, T = shape
    count = B * K * T
    if count > _MAX_CODES or (count * config.bits + 7) // 8 != len(arrays["codes"]):
        raise ValueError("the number of its codes is not the one in its header")
    if config.segment_length and length > _MAX_SEGMENTS * config.segment_stride:
        raise ValueError("it has too many segments")
    parts = segments(config, length)
    if config.n_q < K or sum(part.frames for part in parts) != T:
        raise ValueError("its codes do not fit its codec and length")
    codes = unpack(arrays["codes"], count, config.bits)
    if codes.max() >= config.bins:
        raise ValueError(f"it has codes above {config.bins - 1}")

    scales = arrays.get("scales")
    if (scales is not None) != config.normalize:
        raise ValueError("levels are missing, or the codec stores none")
    if scales is not None:
        good = scales.shape == (B, len(parts)) and np.isfinite(scales).all() and (scales >= 0).all()
        if not good:
            raise ValueError("its levels do not match its segments")
    return EncodedAudio(codes.reshape(B, K, T), scales, length, config, *texts)


def _config(values: Any) -> EncodecConfig:
    config = from_dict(EncodecConfig, values, "config")
    if config.bins < 2 or (config.chunk_length_s or 0) > _MAX_SECONDS:
        raise ValueError("config.bins or config.chunk_length_s is out of range")
    return config


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    """The members of the zip, each checked to be no larger than the file."""
    end = data[-22:]  # the end record of a zip without a comment: the size of its directory
    if end[:4] != b"PK\5\6" or int.from_bytes(end[12:16], "little") > _MAX_DIRECTORY:
        raise ValueError("not a zip of three arrays")
    kinds: dict[str, tuple[np.dtype, int]] = {
        "header": (np.dtype(np.uint8), 1),
        "codes": (np.dtype(np.uint8), 1),
        "scales": (np.dtype("<f4"), 2),
    }
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                raise ValueError("its arrays are compressed")
            if name not in kinds or name in arrays:
                raise ValueError("it holds the wrong arrays")
            arrays[name] = _array(archive.read(info), *kinds[name])
    if not arrays.keys() >= {"header", "codes"}:
        raise ValueError("it lacks an array")
    return arrays


def _array(data: bytes, dtype: np.dtype, ndim: int) -> np.ndarray:
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its arrays are of the wrong format")
    shape, fortran, found = np.lib.format.read_array_header_1_0(file)
    if fortran or found != dtype or len(shape) != ndim:
        raise ValueError("its arrays are of the wrong type")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("its arrays are of the wrong size")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes one after the other, each in `bits` bits, most significant first: uint8 [N]."""
    digits = np.empty((codes.size, bits), np.uint8)
    for i in range(bits):
        digits[:, i] = (codes.reshape(-1) >> (bits - 1 - i)) & 1
    return np.packbits(digits)


def unpack(packed: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The first `count` codes that `pack` packed: int32 [count]."""
    digits = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    codes = np.zeros(count, np.int32)
    for i in range(bits):
        codes = (codes << 1) | digits[:, i]
    return codes
