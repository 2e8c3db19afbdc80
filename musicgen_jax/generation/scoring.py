"""The logits of given codes, without generating any."""

from functools import partial

import jax
import numpy as np

from musicgen_jax.nn import lm
from musicgen_jax.nn.condition import Condition
from musicgen_jax.runtime import sharding


def lm_logits(model: lm.LM, codes: np.ndarray, condition: Condition) -> jax.Array:
    """Teacher-forced logits of codes, see `MusicGen.lm_logits`.

    Args:
      model: the language model.
      codes: int32 [B, K, T].
      condition: B rows.

    Returns:
      float32 [B, K, T, V].
    """
    return sharding.by_rows(sharding.mesh_of(model), partial(_lm_logits, model), codes, condition)


@jax.jit
def _lm_logits(model: lm.LM, codes: jax.Array, condition: Condition) -> jax.Array:
    return lm.compute_predictions(model, codes, model.fill_nulls(condition))[0]
