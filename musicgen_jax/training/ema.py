"""A moving average of parameters, like audiocraft's (`optim/ema.py`, unbiased)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EMA:
    """Averaged parameters and the sum of their weights."""

    params: Any
    count: jax.Array  # float32 []


def start(params: Any) -> EMA:
    """An empty average; the first update replaces it completely."""
    return EMA(jax.tree.map(jnp.copy, params), jnp.zeros(()))


def update(ema: EMA, params: Any, decay: float, due: jax.Array | bool = True) -> EMA:
    """Adds new parameters to the average.

    The average has no bias towards the initial value: the n-th update has the weight
    1 / (1 + decay + ... + decay^(n-1)), which starts at 1 and approaches 1 - decay.

    Args:
      ema: the average so far.
      params: the new parameters.
      decay: below 1; a higher value gives a longer memory.
      due: whether to update the average in this step.
    """
    count = jnp.where(due, ema.count * decay + 1, ema.count)
    weight = jnp.where(due, 1 / jnp.maximum(count, 1), 0)
    averaged = jax.tree.map(lambda old, new: (1 - weight) * old + weight * new, ema.params, params)
    return EMA(averaged, count)
