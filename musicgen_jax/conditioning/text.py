"""A description on its way to the language model: tokens, T5, a projection."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.conditioning.melody import without_melody
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.nn.text_conditioner import TextConditioner
from musicgen_jax.runtime import sharding

if TYPE_CHECKING:
    from musicgen_jax.model import MusicGen

_SHORTEST = 16  # tokens; texts of up to so many share one compilation


def text_condition(model: "MusicGen", descriptions: Sequence[str | None]) -> Condition:
    """What the language model is told: B rows; null rows where there is no text.

    Texts are padded to a power of two, so that prompts of similar length share one compilation.
    Padding is masked and never attended: it does not change a row.
    """
    ids, mask = model.tokenizer(descriptions)
    longest = ids.shape[1]
    padding = max(_SHORTEST, 1 << (longest - 1).bit_length()) - longest
    ids, mask = (np.pad(x, ((0, 0), (0, padding))) for x in (ids, mask))
    if mask.any():
        stage = partial(_condition, model.t5, model.lm.text_conditioner)
        condition = sharding.by_rows(model.mesh, stage, ids, mask)
    else:  # nothing to encode: spares the text encoder and its compilation
        vectors = jnp.zeros((*mask.shape, model.config.lm.dim), model.lm.dtype)
        condition = Condition(Embedded(vectors, jnp.asarray(mask)))
    if not model.config.lm.chroma_bins:
        return condition
    return without_melody(condition, model.config, model.lm.dtype)


def text_alone(model: "MusicGen", texts: Sequence[str | None]) -> Callable[[float], Condition]:
    """The condition of every window where nothing but text conditions; made once, when due."""
    condition = functools.cache(lambda: model.text_condition(texts))
    return lambda offset: condition()


@jax.jit
def _condition(
    t5: T5Encoder, project: TextConditioner, ids: jax.Array, mask: jax.Array
) -> Condition:
    return Condition(Embedded(project(t5(ids, mask), mask), mask))
