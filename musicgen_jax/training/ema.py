"""A moving average of parameters, as audiocraft keeps one (`optim/ema.py`, unbiased)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EMA:
    """Averaged parameters, and the sum of the weights that went into them."""

    params: Any
    count: jax.Array  # float32 []


def start(params: Any) -> EMA:
    """An average of nothing yet; the first update replaces it whole."""
    return EMA(jax.tree.map(jnp.copy, params), jnp.zeros(()))


def update(ema: EMA, params: Any, decay: float, due: jax.Array | bool = True) -> EMA:
    """Takes new parameters into the average.

    Without a bias towards the start: the weight of the n-th is 1 / (1 + decay + ... +
    decay^(n-1)), which begins at 1 and ends at 1 - decay.

    Args:
      ema: the average so far.
      params: the new parameters.
      decay: below 1; the higher, the longer it remembers.
      due: whether this is one of the steps that are averaged.
    """
    count = jnp.where(due, ema.count * decay + 1, ema.count)
    weight = jnp.where(due, 1 / jnp.maximum(count, 1), 0)
    averaged = jax.tree.map(lambda old, new: (1 - weight) * old + weight * new, ema.params, params)
    return EMA(averaged, count)
