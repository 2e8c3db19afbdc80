"""What the language model is conditioned on, as one pytree."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
    """Vectors the language model attends to; absent parts are None.

    `cross` feeds cross-attention (text-to-music models), `prefix` stands in front of the tokens
    (melody and style models). A mask is True where there is something; a masked position is never
    attended, so a row's music depends neither on padding nor on its neighbours in the batch. A row
    without a single True is the null condition: the unconditional half of guidance.
    """

    cross: jax.Array | None = None  # [B, L, D]
    cross_mask: jax.Array | None = None  # [B, L] bool
    prefix: jax.Array | None = None  # [B, P, D]
    prefix_mask: jax.Array | None = None  # [B, P] bool


def null_like(condition: Condition) -> Condition:
    """The null condition in the shapes of `condition`: zeros everywhere, masks all False."""
    return jax.tree.map(jnp.zeros_like, condition)


def concat_batch(a: Condition, b: Condition) -> Condition:
    """The rows of `a`, then the rows of `b`, as one batch.

    Raises:
      ValueError: one has a part that the other lacks, or their lengths or widths differ.
    """

    def concat(name: str) -> jax.Array | None:
        left, right = getattr(a, name), getattr(b, name)
        if left is None and right is None:
            return None
        if left is None or right is None or left.shape[1:] != right.shape[1:]:
            shapes = [None if part is None else part.shape for part in (left, right)]
            raise ValueError(
                f"{name}: shapes {shapes[0]} and {shapes[1]} may differ in the first axis only"
            )
        return jnp.concatenate([left, right])

    return Condition(**{field.name: concat(field.name) for field in dataclasses.fields(Condition)})
