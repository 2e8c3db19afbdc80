"""What the language model is conditioned on, as one pytree."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Embedded:
    """A sequence of vectors for each row of a batch.

    A masked position is never attended, so a row's music depends neither on padding nor on its
    neighbours in the batch. A row whose mask is all False is null: it has no such condition.
    """

    vectors: jax.Array  # [B, L, D]
    mask: jax.Array  # [B, L] bool, True where there is a vector


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
    """What the language model attends to besides the tokens; absent parts are None.

    A text-to-music model attends to the text by cross-attention. A melody or style model has the
    audio and the text as a prefix of the tokens. A row that is null in every part is the
    unconditional half of guidance.
    """

    text: Embedded | None = None
    audio: Embedded | None = None  # a melody or a style


def null_like(condition: Condition) -> Condition:
    """The null condition in the shapes of `condition`: zeros everywhere, masks all False."""
    return jax.tree.map(jnp.zeros_like, condition)


def interleave(*conditions: Condition) -> Condition:
    """The first row of each condition, then the second of each, and so on, as one batch.

    The rows of an example stay together however the batch is cut.

    Raises:
      ValueError: one condition has a part that another lacks, or their shapes differ.
    """

    def rows(*parts: jax.Array) -> jax.Array:
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"the shapes {[part.shape for part in parts]} must be the same")
        return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])

    return jax.tree.map(rows, *conditions)
