"""Which dtypes the language model may be asked for, and which it takes by default."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from musicgen_jax.config import CACHE_DTYPES, DTYPES
from musicgen_jax.errors import UserError


def lm_dtypes(dtype: DTypeLike | None) -> tuple[np.dtype, np.dtype]:
    """What the language model computes in, and what its matrices are kept in.

    By default, and around int8 matrices, float32 on a CPU and bfloat16 elsewhere.
    """
    usual = jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    message = f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {dtype!r}"
    try:
        known = usual if dtype is None else jnp.dtype(dtype)
    except TypeError:
        raise UserError(message) from None
    if known.name not in DTYPES:
        raise UserError(message)
    return (usual if known == jnp.int8 else known), known


def cache_dtype(dtype: DTypeLike | None) -> np.dtype | None:
    """What the language model keeps its keys and values in; None leaves the choice to it."""
    try:
        known = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        known = np.dtype(object)
    if known is not None and known.name not in CACHE_DTYPES:
        names = f"{', '.join(CACHE_DTYPES[:-1])} or {CACHE_DTYPES[-1]}"
        raise UserError(f"cache_dtype must be {names}, got {dtype!r}")
    return known
