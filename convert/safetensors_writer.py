"""Writes safetensors one tensor at a time: the library's own writer copies all of them first."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from musicgen_jax.convert.tensors import LazyTensor

_NAMES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "bool": "BOOL",
}
_ALIGNMENT = 8


def write_safetensors(
    path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]
) -> None:
    """Writes a file of the format of https://github.com/huggingface/safetensors.

    Args:
      path: of the file.
      tensors: read in this order, each only when it is its turn.
      metadata: strings beside them; transformers insists on {"format": "pt"}.
    """
    # Wide types first, so that each tensor starts at a multiple of its width.
    order = sorted(tensors, key=lambda key: -tensors[key].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for key in order:
        tensor = tensors[key]
        start = end
        end += tensor.dtype.itemsize * int(np.prod(tensor.shape, dtype=np.int64))
        header[key] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        _write(file, (tensors[key] for key in order))


def _write(file: BinaryIO, tensors: Iterable[LazyTensor]) -> None:
    for tensor in tensors:
        file.write(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data)
