"""Reads weight files of both kinds, whole or in shards, as one dict of lazy tensors."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from musicgen_jax.convert.tensors import LazyTensor, StateDict
from musicgen_jax.convert.torch_zip import read_torch
from musicgen_jax.errors import UserError

_DTYPES = {
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_TABLE = bytes.fromhex("57fb808b247547db")  # ends TensorFlow's first format and the second's index
_TENSORFLOW_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")


def read_weights(path: Path) -> StateDict:
    """The tensors of a `.safetensors`, torch `.bin` or `.index.json` file."""
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return state_dict(read_torch(path), path)


def state_dict(value: Any, path: Path) -> StateDict:
    """Checks that `value` is a dict of tensors."""
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path} does not hold a dict of tensors")
    for key, tensor in value.items():
        if type(key) is not str or not isinstance(tensor, LazyTensor):
            name = key[:100] if type(key) is str else f"a key of type {type(key).__name__}"
            raise UserError(f"{path} holds more than tensors: {name}")
    return dict(value)


def refuse_pointer(path: Path) -> None:
    """Refuses the pointer file that git leaves instead of a large file.

    Raises:
      UserError: the file is such a pointer.
    """
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs.github.com/"):
            raise UserError(
                f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its "
                "folder"
            )


def refuse_tensorflow(path: Path) -> None:
    """Refuses a checkpoint of TensorFlow, such as Google's own file of VGGish.

    It is a compressed table of protocol buffers in slices: a reader, its decompressor included,
    would be longer than all of VGGish, and the file for PyTorch has the same numbers.

    Raises:
      UserError: the file is one.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_TABLE)))
        table = file.read() == _TABLE
    if table or _TENSORFLOW_DATA.search(path.name):
        raise UserError(
            f"{path} is a checkpoint of TensorFlow, which is not read here: Google's VGGish is "
            "also in vggish-10086976.pth, from github.com/harritaylor/torchvggish/releases"
        )


def read_json(path: Path) -> dict:
    """Reads a JSON object from a file, with or without a byte order mark."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or damaged: {error}") from None


def _read_safetensors(path: Path) -> StateDict:
    tensors = {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_slice(key)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise UserError(f"{path}: {key} is of the unknown type {part.get_dtype()}")
                read = functools.partial(_read_safetensor, path, key)
                tensors[key] = LazyTensor(tuple(part.get_shape()), np.dtype(dtype), read)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or damaged: {error}") from None
    return tensors


def _read_safetensor(path: Path, key: str) -> np.ndarray:
    # Reopen the file for each tensor: the pages of an open file would add up to its whole size.
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.get_tensor(key)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or damaged: {error}") from None


def _read_shards(index: Path) -> StateDict:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map")
    shards: dict[str, StateDict] = {}
    for key, name in weight_map.items():
        # Accept only a bare name: an index must not refer to other folders.
        if type(name) is not str or name != Path(name).name or "\\" in name or ":" in name:
            raise UserError(f"{index}: {str(name)[:100]!r} is not the name of a file next to it")
        if name not in shards:
            if name.endswith(".index.json") or not (index.parent / name).is_file():
                raise UserError(f"{index} names {name}, which is not next to it")
            refuse_pointer(index.parent / name)
            shards[name] = read_weights(index.parent / name)
        if key not in shards[name]:
            raise UserError(f"{index.parent / name} lacks {key}, which {index.name} expects there")
    tensors: StateDict = {}
    for name, shard in shards.items():
        # Read the whole shard, including tensors that the index does not name.
        if twice := tensors.keys() & shard.keys():
            raise UserError(
                f"{index.parent / name} holds {min(twice)}, and so does an earlier shard"
            )
        tensors |= shard
    return tensors
