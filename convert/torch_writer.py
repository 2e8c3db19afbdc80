"""Writes torch's zip format without torch."""

import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from musicgen_jax.convert.pickled import Inert, Name
from musicgen_jax.convert.tensors import LazyTensor

_STORAGES = {
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}
_CHUNK = 16 << 20


def write_torch(path: str | Path | BinaryIO, value: Any) -> None:
    """Writes a file that `torch.load` reads as `value`.

    Args:
      path: path of the file, or an open file.
      value: dicts, lists, tuples, strings, numbers, None, and numpy arrays or `LazyTensor`s (which
        become tensors; lazy ones are read one at a time). `Name` and `Inert` become the objects
        that they describe.
    """
    tensors: list[np.ndarray | LazyTensor] = []
    program = b"\x80\x02" + _program(value, tensors) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", b"little")
        for number, tensor in enumerate(tensors):
            array = tensor if isinstance(tensor, np.ndarray) else tensor.read()
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            with archive.open(f"archive/data/{number}", "w", force_zip64=True) as member:
                for start in range(0, len(data), _CHUNK):
                    member.write(data[start : start + _CHUNK].data)
        archive.writestr("archive/version", b"3\n")


def _program(value: Any, tensors: list) -> bytes:
    """The pickle instructions (protocol 2) that push `value` onto the stack."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            if -(2**31) <= value < 2**31:
                return b"J" + struct.pack("<i", value)
            return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
        case str():
            data = value.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case dict():
            items = b"".join(_program(x, tensors) for item in value.items() for x in item)
            return b"ccollections\nOrderedDict\n)R(" + items + b"u"
        case float():
            return b"G" + struct.pack(">d", value)
        case tuple() if not isinstance(value, LazyTensor):
            return b"(" + b"".join(_program(x, tensors) for x in value) + b"t"
        case Name():
            module, _, name = value.name.rpartition(".")
            return f"c{module}\n{name}\n".encode()
        case Inert():
            made = _program(Name(value.name), tensors) + _program(value.args, tensors) + b"\x81"
            return made if value.state is None else made + _program(value.state, tensors) + b"b"
        case list():
            return b"](" + b"".join(_program(x, tensors) for x in value) + b"e"
        case LazyTensor() | np.ndarray():
            return _tensor(value, tensors)
    raise TypeError(f"cannot write {type(value).__name__}")


def _tensor(tensor: np.ndarray | LazyTensor, tensors: list) -> bytes:
    count = int(np.prod(tensor.shape, dtype=np.int64))
    strides = [int(np.prod(tensor.shape[axis + 1 :])) for axis in range(len(tensor.shape))]
    storage = f"ctorch\n{_STORAGES[tensor.dtype.name]}\n".encode()
    key = str(len(tensors))
    tensors.append(tensor)
    persistent_id = _tuple("storage", storage, key, "cpu", count) + b"Q"
    arguments = _tuple(persistent_id, 0, _tuple(*tensor.shape), _tuple(*strides), False, {})
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def _tuple(*items: Any) -> bytes:
    """A tuple of values; values of type bytes are already instructions."""
    parts = (item if isinstance(item, bytes) else _program(item, []) for item in items)
    return b"(" + b"".join(parts) + b"t"
