"""Modules that hold shapes instead of arrays; their weights come separately."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


class _OneKey:
    """Replaces `nnx.Rngs` where no random number is ever drawn.

    `nnx.Rngs` counts its keys. Flax asks a traced count for its sharding, and JAX searches
    everything traced so far to word the error message. This work grew with the square of the number
    of layers: for musicgen-large it took six of the eight seconds.
    """

    def params(self) -> jax.Array:
        return jax.random.key(0)


def module_shapes(module: Callable[..., M], *args: Any, **kwargs: Any) -> M:
    """`module(*args, **kwargs, rngs=...)` with `jax.ShapeDtypeStruct`s; allocates nothing.

    All arguments must be hashable: a process that asks again gets a copy of the first answer, and
    nothing is traced again.
    """
    return nnx.clone(_traced(module, args, tuple(kwargs.items())))


def filled(shapes: M, weights: Callable[[dict[str, Any]], dict[str, Any]]) -> M:
    """A module with weights, which are asked for by the nested dicts of their shapes."""
    graphdef, state = nnx.split(shapes)
    nnx.replace_by_pure_dict(state, weights(nnx.to_pure_dict(state)))
    return nnx.merge(graphdef, state)


@functools.lru_cache(maxsize=32)
def _traced(module: Callable[..., M], args: tuple, kwargs: tuple[tuple[str, Any], ...]) -> M:
    return nnx.eval_shape(lambda: module(*args, **dict(kwargs), rngs=_OneKey()))
