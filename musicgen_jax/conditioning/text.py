"""A description on its way to the language model: tokens, T5, a projection."""

import functools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.conditioning.chroma import chroma_frames
from musicgen_jax.errors import UserError
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.nn.text_conditioner import TextConditioner
from musicgen_jax.runtime import sharding
from musicgen_jax.storage.loading import Parts

# The condition of the window that begins so many seconds into a piece: B rows, of the same shapes
# for every window.
ConditionAt = Callable[[float], Condition]


def check_descriptions(descriptions: Sequence[str | None]) -> list[str | None]:
    """The descriptions as a list of at least one text or None.

    Raises:
      UserError: they are something else.
    """
    if isinstance(descriptions, str):
        raise UserError(f"descriptions must be a list of texts: [{descriptions!r}]")
    try:
        texts = list(descriptions)
    except TypeError:
        raise UserError(f"descriptions must be a list of texts, got {descriptions!r}") from None
    if not texts:
        raise UserError("descriptions is empty: give at least one, or use generate_unconditional")
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise UserError(f"a description must be a text or None, got {text!r}")
    return texts


def text_condition(parts: Parts, descriptions: Sequence[str | None]) -> Condition:
    """The condition of B checked descriptions; rows without text are null.

    Texts are padded to a power of two, so that prompts of similar length share one compilation.
    Padding is masked and never attended: it does not change a row. In a melody model the melody is
    null in every row.
    """
    ids, mask = parts.tokenizer(descriptions)
    longest = ids.shape[1]
    padding = parts.lm.tuning.text_length(longest) - longest
    ids, mask = (np.pad(x, ((0, 0), (0, padding))) for x in (ids, mask))
    dim, dtype = parts.config.lm.dim, parts.lm.dtype
    if mask.any():
        stage = partial(_encode, parts.t5, parts.lm.text_conditioner)
        text = sharding.by_rows(parts.mesh, stage, ids, mask)
    else:  # skips the text encoder and its compilation
        text = Embedded(jnp.zeros((*mask.shape, dim), dtype), jnp.asarray(mask))
    if not parts.config.lm.chroma_bins:
        return Condition(text)
    no_melody = jnp.zeros((len(mask), chroma_frames(parts.config)), bool)
    return Condition(text, Embedded(jnp.zeros((*no_melody.shape, dim), dtype), no_melody))


def text_alone(parts: Parts, texts: Sequence[str | None]) -> ConditionAt:
    """The condition of every window where only text conditions; computed once, when first used."""
    condition = functools.cache(lambda: text_condition(parts, texts))
    return lambda offset: condition()


@jax.jit
def _encode(t5: T5Encoder, project: TextConditioner, ids: jax.Array, mask: jax.Array) -> Embedded:
    return Embedded(project(t5(ids, mask), mask), mask)
