"""Weights stored as int8: rounded per output channel, a quarter of float32 on disk.

A leaf of two or more axes becomes {"int8": whole numbers, "scale": float32}; others stay float32.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def quantize(component: str, path: tuple[str, ...], leaf: Any) -> Any:
    """A leaf [..., O, I] as int8 and scales [..., O, 1], see `checkpoint.ModelWriter`.

    Args:
      component: the component's name.
      path: of the leaf; with the component it says whether this is a convolution [..., I, O].
      leaf: any array; with fewer than two axes it is only converted to float32.
    """
    value = np.asarray(leaf, np.float32)
    if value.ndim < 2:
        return value
    # One scale per output channel: the last axis of a convolution [..., in, out], the rows of
    # everything else ([out, in]; tables of embeddings, codes and heads [K, V, D]).
    convolves = component in ("encodec", "mert", "separator", "vggish")
    convolution = convolves and value.ndim >= 3 and path[-1] == "weight"
    axes = tuple(range(value.ndim - 1)) if convolution else (-1,)
    scale = np.abs(value).max(axis=axes, keepdims=True) / np.float32(127)
    whole = np.rint(value / np.where(scale > 0, scale, 1)).astype(np.int8)
    return {"int8": whole, "scale": scale}


def shapes(stored: Mapping) -> dict:
    """Metadata by the path of the leaf, without /int8 and /scale at its end."""
    found = {path: leaf for path, leaf in stored.items() if path[-1] not in ("int8", "scale")}
    for path, leaf in stored.items():
        if path[-1] == "int8":
            found[path[:-1]] = leaf
        elif path[-1] == "scale" and (*path[:-1], "int8") not in stored:
            found[path] = leaf  # the scale of a norm
    return found


def dequantize(loaded: Mapping, path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """A leaf in the dtype of `leaf`, from the stored arrays `loaded` by path."""
    whole = loaded.get((*path, "int8"))
    if whole is None:
        return loaded[path].astype(leaf.dtype)
    return (whole.astype(np.float32) * loaded[(*path, "scale")]).astype(leaf.dtype)
