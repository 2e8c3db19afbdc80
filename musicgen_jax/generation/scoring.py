"""What a language model thinks of given codes, without generating any."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np

from musicgen_jax.conditioning import arguments
from musicgen_jax.generation.piece import check_codes
from musicgen_jax.nn import lm
from musicgen_jax.nn.condition import Condition
from musicgen_jax.runtime import sharding

if TYPE_CHECKING:
    from musicgen_jax.model import MusicGen


def lm_logits(
    model: "MusicGen", codes: jax.Array | np.ndarray, descriptions: Sequence[str | None]
) -> jax.Array:
    """Teacher-forced logits of the codes, without guidance (audiocraft: compute_predictions).

    Args:
      model: the model.
      codes: int [B, K, T].
      descriptions: B texts, None or "" for none.

    Returns:
      float32 [B, K, T, V]: at frame t of codebook k the logits that predict `codes[:, k, t]` from
      all that comes before it in the delay pattern. As in audiocraft the last delays[k] frames of
      codebook k are NaN: their steps lie beyond the sequence.
    """
    texts = arguments.check_descriptions(descriptions)
    codes = arguments.match_batch(check_codes(model.config, codes, "codes"), len(texts))
    stage = partial(_lm_logits, model.lm)
    return sharding.by_rows(model.mesh, stage, codes, model.text_condition(texts))


@jax.jit
def _lm_logits(model: lm.LM, codes: jax.Array, condition: Condition) -> jax.Array:
    return lm.compute_predictions(model, codes, model.fill_nulls(condition))[0]
