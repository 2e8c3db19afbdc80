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


def interleave(*conditions: Condition) -> Condition:
    """The first row of each condition, then the second of each, and so on, as one batch.

    So what belongs to one example stays together however a batch is cut.

    Raises:
      ValueError: one has a part that another lacks, or their shapes differ.
    """

    def rows(name: str) -> jax.Array | None:
        parts = [getattr(condition, name) for condition in conditions]
        given = [part for part in parts if part is not None]
        if not given:
            return None
        if len(given) < len(parts) or len({part.shape for part in given}) > 1:
            shapes = [None if part is None else part.shape for part in parts]
            raise ValueError(f"{name}: the shapes {shapes} must be the same")
        return jnp.stack(given, axis=1).reshape(-1, *given[0].shape[1:])

    return Condition(**{field.name: rows(field.name) for field in dataclasses.fields(Condition)})
