"""Which rows the model runs for each example, so that guidance can compare them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from musicgen_jax.generation.settings import Sampling
from musicgen_jax.nn.condition import Condition, Embedded, interleave, null_like
from musicgen_jax.nn.lm import LM
from musicgen_jax.runtime import sharding


def copies_of(condition: Condition, sampling: Sampling) -> int:
    """How many rows the model runs for each example.

    1: the conditional row. 2: also a null row, or one with the negative description, for guidance.
    3: between these two also a row with the audio but without the text, for double guidance. If no
    row has any condition, guidance would compare equal rows, so one row is enough.
    """
    text, audio, against = (
        part is not None and bool(np.asarray(part.mask).any())
        for part in (condition.text, condition.audio, condition.against)
    )
    # If no row has a text, double guidance would compare equal rows.
    double = text and sampling.cfg_coef_beta not in (None, 1)
    if not (text or audio or against) or (sampling.cfg_coef == 1 and not double):
        return 1
    return 3 if double else 2


@partial(jax.jit, static_argnames=("copies", "mesh"))
def guided(lm: LM, condition: Condition, *, copies: int, mesh: Mesh | None = None) -> Condition:
    """The condition of all rows that the model runs.

    Args:
      lm: the model.
      condition: B rows.
      copies: from `copies_of`.
      mesh: the mesh that holds the rows.

    Returns:
      `copies * B` rows, those of an example next to each other; B rows if the model skips null
      rows, which attend to nothing and need no condition.
    """
    against, condition = condition.against, dataclasses.replace(condition, against=None)
    if copies == 1 or (lm.skip_null_rows and against is None):
        return sharding.constrain_rows(lm.fill_nulls(condition), mesh)
    condition = lm.fill_nulls(condition)
    null = null_like(condition)
    if lm.config.conditioning == "prepend":
        # A null row takes up as many positions as the row next to it, as in audiocraft.
        null = lm.fill_nulls(Condition(_masked_like(null.text, condition.text), null.audio))
        null = Condition(null.text, _masked_like(null.audio, condition.audio))
    elif lm.config.hears:  # an absent text is not attended to
        null = lm.fill_nulls(null)
    audio = Condition(null.text, condition.audio)
    if against is not None:
        null = Condition(_instead(null.text, against), null.audio)
    sides = (condition, null) if copies == 2 else (condition, audio, null)
    return sharding.constrain_rows(interleave(*sides), mesh)


def _instead(null: Embedded | None, against: Embedded) -> Embedded:
    """The text of the null rows: `against` in the rows that have one."""
    if null is None:
        return against
    given = against.mask.any(axis=1, keepdims=True)
    vectors = jnp.where(given[..., None], against.vectors, null.vectors)
    return Embedded(vectors, jnp.where(given, against.mask, null.mask))


def _masked_like(part: Embedded | None, other: Embedded | None) -> Embedded | None:
    return None if part is None or other is None else Embedded(part.vectors, other.mask)
