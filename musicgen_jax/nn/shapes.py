"""Modules that hold shapes in place of arrays, for weights that come from elsewhere."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


class _OneKey:
    """In the place of `nnx.Rngs` where no number is ever drawn.

    `nnx.Rngs` counts its keys. For a traced count Flax asks for a sharding, and JAX words its
    refusal by searching everything traced so far: the work grew with the square of the number of
    layers, to six of the eight seconds that musicgen-large took.
    """

    def params(self) -> jax.Array:
        return jax.random.key(0)


def module_shapes(module: Callable[..., M], *args: Any, **kwargs: Any) -> M:
    """`module(*args, **kwargs, rngs=...)` with `jax.ShapeDtypeStruct`s; allocates nothing."""
    return nnx.eval_shape(lambda: module(*args, **kwargs, rngs=_OneKey()))
