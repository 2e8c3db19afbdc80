"""Arithmetic of arrays that have different numbers of axes."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def aligned(small: ArrayLike, x: jax.Array) -> jax.Array:
    """`small` with as many axes as `x`; the new ones are in front and have length 1.

    NumPy adds them silently. JAX refuses that under `jax_numpy_rank_promotion="raise"`, which code
    that uses this package may have chosen.
    """
    return jnp.expand_dims(small, range(x.ndim - jnp.ndim(small)))
