"""Weight normalisation as a parameter transform: separate direction and length.

The modules do not know about it. Training splits the parameters first and folds them back before
each use in a module.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from musicgen_jax.config import EncodecConfig

Path = tuple[str, ...]


def split(params: Any, kept_axis: Callable[[Path, jax.Array], int | None]) -> Any:
    """Splits weights into `weight_v` and its length `weight_g`; the values do not change.

    Args:
      params: nested dicts of arrays; leaves named "weight" are candidates.
      kept_axis: returns the axis of a weight along which each index has its own length, or None to
        leave the weight unsplit.
    """

    def walk(tree: Any, path: Path) -> Any:
        if not isinstance(tree, dict):
            return tree
        out = {}
        for key, value in tree.items():
            axis = kept_axis(path, value) if key == "weight" else None
            if axis is None:
                out[key] = walk(value, (*path, str(key)))
            else:
                others = tuple(i for i in range(value.ndim) if i != axis % value.ndim)
                out["weight_g"] = jnp.sqrt(jnp.square(value).sum(others, keepdims=True))
                out["weight_v"] = value
        return out

    return walk(params, ())


def fold(params: Any) -> Any:
    """Folds split weights back into plain weights: g v / |v|."""
    if not isinstance(params, dict):
        return params
    out = {k: fold(v) for k, v in params.items() if k not in ("weight_g", "weight_v")}
    if "weight_g" in params:
        g, v = params["weight_g"], params["weight_v"]
        others = tuple(i for i in range(v.ndim) if g.shape[i] == 1)
        # With the floor, an all-zero filter, which has no direction, stays zero.
        square = jnp.maximum(jnp.square(v).sum(others, keepdims=True), 1e-30)
        out["weight"] = v * (g * jax.lax.rsqrt(square))
    return out


def encodec_axes(config: EncodecConfig) -> Callable[[Path, jax.Array], int | None]:
    """Makes the `kept_axis` of a codec: the axis that is first in PyTorch.

    That is the output channel of a convolution [kernel, I, O], and the input channel of a
    transposed convolution.
    """
    first, apart = 2 + bool(config.lstm), 2 + config.n_residual_layers
    upsampling = {str(first + i * apart) for i in range(len(config.ratios))}

    def kept_axis(path: Path, weight: jax.Array) -> int | None:
        if config.norm != "weight_norm" or weight.ndim != 3:
            return None
        return 1 if path[0] == "decoder" and path[2:] and path[2] in upsampling else 2

    return kept_axis
