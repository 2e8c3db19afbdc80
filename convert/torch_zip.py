"""Reads files of `torch.save`, without torch and without running any code from the file.

The file is a zip: `<root>/data.pkl` holds the structure, and `<root>/data/<key>` holds the raw
little-endian storages. Before torch 1.6 the file was a chain of pickles: a magic number, the
version, the machine, the structure and the storages' keys. The storages came after them, each
preceded by its length in 8 bytes.

Only the names of tensors and dicts have a meaning in the structure. Other names are refused, unless
the caller lists them; then they are kept as names. See `pickled`.
"""

import functools
import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from musicgen_jax.convert.pickled import Name, Refused, read_pickle
from musicgen_jax.convert.tensors import LazyTensor
from musicgen_jax.errors import UserError

_DTYPES = {
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_MAX_PICKLE = 16 << 20  # bytes; the structure of an official model has about 100 kB
_MAX_AXES = 16
_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled number; starts older files
_LEGACY_VERSION = 1001
_CHUNK = 16 << 20


def is_zip(path: Path) -> bool:
    """Whether the file starts like a zip; this is also true of a truncated zip."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def is_torch(path: Path) -> bool:
    """Whether the file starts like one of the two formats."""
    with path.open("rb") as file:
        return is_zip(path) or file.read(len(_MAGIC)) == _MAGIC


def read_torch(path: str | Path, inert: Collection[str] = ()) -> Any:
    """Reads an object that `torch.save` wrote: dicts, lists, strings, numbers, `LazyTensor`s.

    Args:
      path: path of the file.
      inert: full names of other classes and functions that the file may mention, such as
        "fractions.Fraction". They are neither imported nor called; the result has a `pickled.Name`
        or `pickled.Inert` instead.

    Raises:
      UserError: torch did not write the file, it is truncated or damaged, or it names anything
        except tensors, dicts and the names in `inert`.
    """
    path = Path(path)
    try:
        if is_zip(path):
            return _Archive(path).load(inert)
        if is_torch(path):
            return _Legacy(path).load(inert)
    except (UserError, MemoryError):
        raise
    except Refused as error:
        raise UserError(
            f"{path} is refused: {error}, and only tensors and plain data are read"
        ) from None
    except Exception as error:  # damaged bytes can raise any exception
        raise UserError(f"{path} is truncated or damaged: {_first_line(error)}") from None
    raise UserError(f"{path} is not a file that torch.save wrote")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


class _Archive:
    """One torch zip, with the position of each storage."""

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            self.members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.members if name.count("/") == 1]
        pickles = [name for name in pickles if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip, but not one that torch.save wrote: no data.pkl")
        self.pickle = pickles[0]
        self.root = self.pickle.removesuffix("data.pkl")

    def load(self, inert: Collection[str]) -> Any:
        order = self.root + "byteorder"
        if order in self.members and self.read(order, 16).tobytes() != b"little":
            raise UserError(f"{self.path} was written on a big-endian machine: save it again")
        program = self.read(self.pickle, _MAX_PICKLE).tobytes()
        return _structure(program, inert, self.storage)

    def storage(self, pid: Any) -> "_Storage":
        """("storage", type, key, device, number of elements) -> position of the storage."""
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            self.fail("a persistent id that is not a storage")
        _, kind, key, _, numel = pid
        dtype = _dtype(kind)
        if dtype is None or type(key) is not str or type(numel) is not int:
            self.fail("a storage of unknown type")
        member = f"{self.root}data/{key}"
        if self.check(member).file_size != numel * dtype.itemsize:
            self.fail(f"{member} does not have the size of {numel} numbers of {dtype}")
        return _Storage(self, member, dtype, numel)

    def fail(self, what: str) -> NoReturn:
        raise UserError(f"{self.path} is damaged: {what}")

    def check(self, name: str) -> zipfile.ZipInfo:
        """The member `name`, which must be uncompressed and inside the file."""
        info = self.members.get(name)
        if info is None:
            raise UserError(f"{self.path} is damaged: it lacks {name}")
        stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
        if not stored or info.header_offset + info.file_size > self.size:
            raise UserError(f"{self.path} is damaged: {name} is compressed or outside the file")
        return info

    def read(self, name: str, limit: int) -> np.ndarray:
        """The bytes of a member, uint8, checked against the zip's CRC."""
        info = self.check(name)
        if info.file_size > limit:
            raise UserError(f"{self.path} is damaged: {name} is larger than {limit} bytes")
        data = np.empty(info.file_size, np.uint8)
        view, filled = data.data, 0
        with zipfile.ZipFile(self.path) as archive, archive.open(info) as member:
            while count := member.readinto(view[filled : filled + _CHUNK]):  # type: ignore
                filled += count
        if filled != info.file_size:
            raise UserError(f"{self.path} is truncated: {name} ends early")
        return data


class _Legacy:
    """One file from before torch 1.6, with the position of each storage."""

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size
        self.counts: dict[str, int] = {}  # numbers in each storage that the structure names
        self.lengths: dict[str, int] = {}  # bytes in each storage
        self.starts: dict[str, int] = {}

    def load(self, inert: Collection[str]) -> Any:
        with self.path.open("rb") as file:
            head = file.read(_MAX_PICKLE)
        programs, end = [], 0
        for _ in range(5):
            programs.append(_first_pickle(head[end:]))
            end += len(programs[-1])
        _, version, machine, structure, keys = programs
        if _plain(version) != _LEGACY_VERSION:
            raise ValueError("an unknown version of torch's older format")
        if _plain(machine).get("little_endian") is not True:
            raise UserError(f"{self.path} was written on a big-endian machine: save it again")
        value = _structure(structure, inert, self.storage)
        order = _plain(keys)
        if type(order) is not list or sorted(map(str, order)) != sorted(self.lengths):
            raise ValueError("its list of storages does not match its structure")
        with self.path.open("rb") as file:
            for key in order:
                file.seek(end)
                count = int.from_bytes(file.read(8), "little", signed=True)
                self.starts[key] = end + 8
                end += 8 + self.lengths[key]
                if end > self.size:
                    raise ValueError(f"storage {key} ends early")
                if count != self.counts[key]:
                    raise ValueError(
                        f"storage {key} has a different length from what its structure says"
                    )
        return value

    def storage(self, pid: Any) -> "_Storage":
        """("storage", type, key, device, numel, view) -> position of the storage."""
        if type(pid) is not tuple or len(pid) != 6 or pid[0] != "storage" or pid[5] is not None:
            raise ValueError("a persistent id that is not a whole storage")
        _, kind, key, _, numel, _ = pid
        dtype = _dtype(kind)
        if dtype is None or type(key) is not str or type(numel) is not int or numel < 0:
            raise ValueError("a storage of unknown type")
        length = numel * dtype.itemsize
        if self.lengths.setdefault(key, length) != length:
            raise ValueError(f"storage {key} has two lengths")
        self.counts[key] = numel
        return _Storage(self, key, dtype, numel)

    def read(self, name: str, limit: int) -> np.ndarray:
        """The bytes of a storage, uint8."""
        del limit  # `load` has checked that the storage is inside the file
        data = np.empty(self.lengths[name], np.uint8)
        view, filled = data.data, 0
        with self.path.open("rb") as file:
            file.seek(self.starts[name])
            while count := file.readinto(view[filled : filled + _CHUNK]):
                filled += count
        if filled != len(data):
            raise UserError(f"{self.path} is truncated: storage {name} ends early")
        return data


def _structure(program: bytes, inert: Collection[str], storage: Callable[[Any], "_Storage"]) -> Any:
    """The dicts and tensors that a pickle describes."""
    functions = {
        "collections.OrderedDict": _dict,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
    }
    if "collections.defaultdict" in inert:
        functions["collections.defaultdict"] = lambda *_: {}
    storages = {f"torch.{name}" for name in _DTYPES}
    return read_pickle(program, functions, storages | set(inert), storage)


def _plain(program: bytes) -> Any:
    """Reads a pickle that contains no names."""
    return read_pickle(program, {}, (), lambda _: None)


def _first_pickle(data: bytes) -> bytes:
    """The bytes up to the first STOP."""
    stream = io.BytesIO(data)
    for _ in pickletools.genops(stream):
        pass
    return data[: stream.tell()]


def _dtype(kind: Any) -> np.dtype | None:
    return _DTYPES.get(kind.name.removeprefix("torch.")) if type(kind) is Name else None


def _read_tensor(storage: "_Storage", offset: int, shape: tuple, stride: tuple) -> np.ndarray:
    path = storage.archive.path
    try:
        raw = storage.archive.read(storage.member, storage.archive.size).view(storage.dtype)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged: {_first_line(error)}") from None
    steps = tuple(s * storage.dtype.itemsize for s in stride)
    view = np.lib.stride_tricks.as_strided(raw[offset:], shape, steps)
    # Copy a part of a larger storage, so that the storage can be freed.
    whole = view.size == raw.size and view.flags.c_contiguous
    return view if whole else view.copy()


class _Storage(NamedTuple):
    archive: _Archive | _Legacy
    member: str
    dtype: np.dtype
    numel: int


def _dict(*args: Any) -> dict:
    """OrderedDict, the class of a state dict; torch fills it later, with SETITEMS."""
    if args:
        raise ValueError("a dict made from arguments")
    return {}


def _rebuild_tensor(storage, offset, shape, stride, *_) -> LazyTensor:
    """Replaces torch's `_rebuild_tensor_v2`; ignores the gradient's flags and hooks."""
    numbers = (offset, *shape, *stride)
    if (
        type(storage) is not _Storage
        or len(shape) != len(stride)
        or len(shape) > _MAX_AXES
        or not all(type(n) is int and n >= 0 for n in numbers)
    ):
        raise ValueError("a tensor with an impossible shape")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if count else 0
    # A few stored numbers must not become a huge tensor through stride 0.
    if count > storage.numel or last >= max(storage.numel, 1) or offset > storage.numel:
        raise ValueError("a tensor reaches outside its storage")
    shape, stride = tuple(shape), tuple(stride)
    read = functools.partial(_read_tensor, storage, offset, shape, stride)
    return LazyTensor(shape, storage.dtype, read)
