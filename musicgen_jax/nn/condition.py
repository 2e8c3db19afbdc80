"""The condition of the language model, as one pytree."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Embedded:
    """A sequence of vectors for each row of a batch.

    The model never attends to a masked position. So a row's music depends neither on padding nor on
    the other rows of the batch. A row whose mask is all False is null: the condition is absent.
    """

    vectors: jax.Array  # [B, L, D]
    mask: jax.Array  # [B, L] bool, True where there is a vector


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
    """The text and audio that the language model attends to; absent parts are None.

    A text-to-music model attends to the text by cross-attention. A melody or style model reads the
    audio and the text as a prefix of the tokens. A row whose parts are all null is the
    unconditional half of guidance, unless `against` has a text for it.
    """

    text: Embedded | None = None
    audio: Embedded | None = None  # a melody or a style
    against: Embedded | None = None  # a text, as long as `text`, that guidance moves away from


def null_like(condition: Condition) -> Condition:
    """A null condition with the shapes of `condition`: all zeros, with masks all False."""
    return jax.tree.map(jnp.zeros_like, condition)


def interleave(*conditions: Condition) -> Condition:
    """Interleaves conditions as one batch: the first row of each, then the second of each, etc.

    So the rows of an example stay together when the batch is split.

    Raises:
      ValueError: the conditions have different parts, or their shapes differ.
    """

    def rows(*parts: jax.Array) -> jax.Array:
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"the shapes {[part.shape for part in parts]} must be the same")
        return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])

    return jax.tree.map(rows, *conditions)
