"""A description on its way to the language model: tokens, T5, a projection."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts that describe B clips.

    Attributes:
      descriptions: B texts; None or "" for a clip without one.
      negatives: B texts that guidance moves away from, None or "" for nothing; None if no clip has
        one.
    """

    descriptions: tuple[str | None, ...]
    negatives: tuple[str | None, ...] | None = None


# The condition of the window that begins so many seconds into a piece, under these texts: B rows,
# of the same shapes for every window.
ConditionAt = Callable[[float, Texts], Condition]


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


def check_negatives(negatives: Sequence[str | None] | None, batch: int) -> list[str | None] | None:
    """The negative descriptions of `batch` clips; None if no clip has one.

    Raises:
      UserError: they are something else.
    """
    if negatives is None:
        return None
    if isinstance(negatives, str) or not isinstance(negatives, Sequence):
        raise UserError(f"negative_descriptions must be a list of texts, got {negatives!r}")
    if len(negatives) != batch:
        raise UserError(
            f"{len(negatives)} negative_descriptions for {batch} clips: give one for each, None "
            "for a clip without one"
        )
    for text in negatives:
        if text is not None and not isinstance(text, str):
            raise UserError(f"a negative description must be a text or None, got {text!r}")
    return list(negatives) if any(negatives) else None


def text_condition(
    parts: Parts,
    descriptions: Sequence[str | None],
    negatives: Sequence[str | None] | None = None,
) -> Condition:
    """The condition of B checked descriptions; rows without text are null.

    Texts are padded to a power of two, so that prompts of similar length share one compilation.
    Padding is masked and never attended: it does not change a row. In a melody model the melody is
    null in every row. Negative descriptions are padded to the same length.
    """
    tokens = [parts.tokenizer(texts) for texts in (descriptions, negatives) if texts is not None]
    length = parts.lm.tuning.text_length(max(ids.shape[1] for ids, _ in tokens))
    text, *against = (_embedded(parts, ids, mask, length) for ids, mask in tokens)
    condition = Condition(text, against=against[0] if against else None)
    if not parts.config.lm.chroma_bins:
        return condition
    no_melody = jnp.zeros((len(text.mask), chroma_frames(parts.config)), bool)
    vectors = jnp.zeros((*no_melody.shape, parts.config.lm.dim), parts.lm.dtype)
    return dataclasses.replace(condition, audio=Embedded(vectors, no_melody))


def text_conditions(parts: Parts) -> Callable[[Texts], Condition]:
    """`text_condition` of `Texts`, computed once for the windows that share them."""
    return functools.lru_cache(maxsize=4)(
        lambda texts: text_condition(parts, texts.descriptions, texts.negatives)
    )


def text_alone(parts: Parts) -> ConditionAt:
    """The condition of every window in a model that takes only text."""
    condition = text_conditions(parts)
    return lambda offset, texts: condition(texts)


def _embedded(parts: Parts, ids: np.ndarray, mask: np.ndarray, length: int) -> Embedded:
    """Tokens `[B, L]`, padded to `length` and encoded."""
    ids, mask = (np.pad(x, ((0, 0), (0, length - x.shape[1]))) for x in (ids, mask))
    if mask.any():
        stage = partial(_encode, parts.t5, parts.lm.text_conditioner)
        return sharding.by_rows(parts.mesh, stage, ids, mask)
    # Skips the text encoder and its compilation.
    vectors = jnp.zeros((*mask.shape, parts.config.lm.dim), parts.lm.dtype)
    return Embedded(vectors, jnp.asarray(mask))


@jax.jit
def _encode(t5: T5Encoder, project: TextConditioner, ids: jax.Array, mask: jax.Array) -> Embedded:
    return Embedded(project(t5(ids, mask), mask), mask)
