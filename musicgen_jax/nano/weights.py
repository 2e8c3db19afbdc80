"""The weights of earlier nano models, from which others are trained further."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from musicgen_jax.storage import checkpoint, loading


def text_encoder(folder: Path) -> dict[str, Any]:
    """The text encoder's parameters of a model folder, float32."""
    config = checkpoint.load_config(folder)
    parts = loading.load_parts(folder, config, dtype="float32", cache_dtype=None, mesh=None)
    return nnx.to_pure_dict(nnx.state(parts.t5, nnx.Param))


def language_model(folder: Path) -> dict[str, Any]:
    """The language model's parameters of a model folder, float32."""
    return loading.load_float_lm(folder, checkpoint.load_config(folder))


def mean_of(lm: dict[str, Any], before: dict[str, Any], share: float = 0.5) -> dict[str, Any]:
    """The mean of two language models, one of which was trained further from the other.

    Args:
      lm: the weights after training.
      before: the weights that training started from.
      share: how much the weights after training count, from 0 to 1.

    A model that was trained further on other examples forgets some of what it did well before; the
    mean of its weights before and after keeps more of both (Wortsman et al., 2022, "Robust
    fine-tuning of zero-shot models").
    """

    def mix(after: Any, before: Any) -> np.ndarray:
        before = np.asarray(before)
        return before + np.float32(share) * (np.asarray(after) - before)

    return jax.tree.map(mix, lm, before)
