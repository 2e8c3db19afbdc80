"""Reads what `torch.save` writes, without torch and without running anything from the file.

The file is a zip: `<root>/data.pkl` holds the structure, `<root>/data/<key>` the raw little-endian
storages. A pickle is a program; this reader knows the few instructions and the few names that a
dict of tensors needs, refuses every other one by name, and never imports what a file names.
"""

import functools
import io
import math
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

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
_NAMES = {f"torch.{name}" for name in _DTYPES} | {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
# fmt: off
_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
}
# fmt: on
_MAX_PICKLE = 64 << 20  # bytes; the structure of an official model takes about 100 kB
_MAX_AXES = 16
_CHUNK = 16 << 20


def is_zip(path: Path) -> bool:
    """Whether the file starts as a zip does; a truncated zip still does."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_torch(path: str | Path) -> Any:
    """The object that `torch.save` wrote: dicts, lists, strings, numbers and `LazyTensor`s.

    Raises:
      UserError: the file is not one of torch's zips, is truncated or damaged, or names anything
        but tensors and dicts. Nothing that the file names is imported or called.
    """
    path = Path(path)
    if not is_zip(path):
        raise UserError(
            f"{path} is not a torch zip; if it is in torch's format from before version 1.6, save "
            "it again: torch.save(torch.load(PATH, weights_only=True), NEW_PATH)"
        )
    try:
        return _Archive(path).load()
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged bytes fail in as many ways as there are bytes
        raise UserError(f"{path} is truncated or damaged: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


class _Archive:
    """One torch zip; knows where each storage lies."""

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

    def load(self) -> Any:
        order = self.root + "byteorder"
        if order in self.members and self.read(order, 16).tobytes() != b"little":
            raise UserError(f"{self.path} was written on a big-endian machine: save it again")
        program = self.read(self.pickle, _MAX_PICKLE).tobytes()
        _check_program(program, self.path)
        return _Unpickler(io.BytesIO(program), self).load()

    def check(self, name: str) -> zipfile.ZipInfo:
        """The member `name`, which must be stored as it is and lie inside the file."""
        info = self.members.get(name)
        if info is None:
            raise UserError(f"{self.path} is damaged: it lacks {name}")
        stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
        if not stored or info.header_offset + info.file_size > self.size:
            raise UserError(f"{self.path} is damaged: {name} is compressed or outside the file")
        return info

    def read(self, name: str, limit: int) -> np.ndarray:
        """The bytes of a member, checked against the zip's CRC, uint8."""
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

    def tensor(self, storage: "_Storage", offset: int, shape: tuple, stride: tuple) -> np.ndarray:
        try:
            raw = self.read(storage.member, self.size).view(storage.dtype)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            raise UserError(f"{self.path} is damaged: {_first_line(error)}") from None
        steps = tuple(s * storage.dtype.itemsize for s in stride)
        view = np.lib.stride_tricks.as_strided(raw[offset:], shape, steps)
        # A part of a larger storage is copied, so that the rest of it can go.
        whole = view.size == raw.size and view.flags.c_contiguous
        return view if whole else view.copy()


class _Storage(NamedTuple):  # immutable even for pickle's BUILD, as LazyTensor is
    archive: _Archive
    member: str
    dtype: np.dtype
    numel: int


class _Dict(dict):
    """Stands for OrderedDict; drops the attributes that torch hangs on a state dict."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


def _check_program(program: bytes, path: Path) -> None:
    """Refuses instructions and names beyond those of a dict of tensors, before any of it runs.

    It also bounds the memo's indices: C's unpickler allocates up to the largest one named.
    """
    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in ("GLOBAL", "INST"):
            _check_name(argument.replace(" ", ".", 1), path)
        if opcode.name not in _OPCODES:
            raise UserError(f"{path} is refused: pickle instruction {opcode.name} is not data")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and argument > len(program):
            raise UserError(f"{path} is damaged: its pickle has an impossible memo")


def _check_name(name: str, path: Path) -> None:
    if name not in _NAMES:
        raise UserError(
            f"{path} is refused: it names {name[:100]!r}, and only tensors and dicts are read "
            "(from a training run, export the model first: audiocraft.utils.export)"
        )


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, archive: _Archive):
        super().__init__(file)
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        _check_name(full, self._archive.path)
        if name in _DTYPES:
            return name  # a plain string: only `persistent_load` makes something of it
        # New functions for each name, so that no file can leave a mark on the module's own.
        return {
            "OrderedDict": _Dict,
            "_rebuild_tensor_v2": lambda *arguments: _rebuild_tensor(*arguments),
            "_rebuild_parameter": lambda data, *_: data,
        }[name]

    def persistent_load(self, pid: Any) -> _Storage:
        """("storage", type, key, device, number of elements) -> where the storage lies."""
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            self._fail("a persistent id that is no storage")
        _, kind, key, _, numel = pid
        known = type(kind) is str and kind in _DTYPES and type(key) is str
        if not known or type(numel) is not int:
            self._fail("a storage of unknown type")
        member, dtype = f"{self._archive.root}data/{key}", _DTYPES[kind]
        if self._archive.check(member).file_size != numel * dtype.itemsize:
            self._fail(f"{member} has not the size of {numel} numbers of {dtype}")
        return _Storage(self._archive, member, dtype, numel)

    def _fail(self, what: str) -> NoReturn:
        raise UserError(f"{self._archive.path} is damaged: {what}")


def _rebuild_tensor(storage, offset, shape, stride, *_) -> LazyTensor:
    """What torch calls `_rebuild_tensor_v2`; flags and hooks of the gradient are ignored."""
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
    # A few stored numbers must not become a huge tensor by stride 0.
    if count > storage.numel or last >= max(storage.numel, 1) or offset > storage.numel:
        raise ValueError("a tensor reaches outside its storage")
    shape, stride = tuple(shape), tuple(stride)
    read = functools.partial(storage.archive.tensor, storage, offset, shape, stride)
    return LazyTensor(shape, storage.dtype, read)
