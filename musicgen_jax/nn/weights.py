"""Weights that consist of several arrays: int8 with scales, and weights with a LoRA adapter."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """A weight as 8-bit integers; each row (output channel) has its own scale."""

    int8: jax.Array  # [..., O, I]
    scale: jax.Array  # float32 [..., O, 1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape, `[..., O, I]`."""
        return self.int8.shape

    def __getitem__(self, rows: slice) -> "Int8Weight":
        return Int8Weight(self.int8[rows], self.scale[rows])

    def flat(self) -> "Int8Weight":
        """`[..., O, I]` as `[O', I]`."""
        return Int8Weight(
            self.int8.reshape(-1, self.int8.shape[-1]), self.scale.reshape(-1, self.scale.shape[-1])
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraWeight:
    """A weight with a product of two thin matrices added to the rows of each part (LoRA).

    A weight that is not fused has one part; a fused weight of queries, keys and values has three.
    For a part without an adapter, `a` and `b` hold None.
    """

    base: jax.Array  # [O, I], or [P, O / P, I]
    a: tuple[jax.Array | None, ...]  # P x [R, I]
    b: tuple[jax.Array | None, ...]  # P x [O / P, R]
    scale: float = dataclasses.field(metadata={"static": True})  # of the products

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape, `[O, I]` or `[P, O / P, I]`."""
        return self.base.shape

    def __getitem__(self, rows: slice) -> "LoraWeight":
        """Slices rows; the slice must consist of whole parts."""
        part = self.shape[0] // len(self.a)
        start, stop, _ = rows.indices(self.shape[0])
        if start % part or stop % part:
            raise ValueError(f"rows {start} to {stop} are not whole parts of {part}")
        parts = slice(start // part, stop // part)
        return LoraWeight(self.base[rows], self.a[parts], self.b[parts], self.scale)


def quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounds each row to multiples of its own scale, chosen so that its largest value is 127.

    Args:
      x: float `[..., I]`.

    Returns:
      int8 `[..., I]` and float32 `[..., 1]`; their product is `x` up to 1/254 of the row's maximum.
    """
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(-1, keepdims=True) / 127
    return jnp.rint(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale


def rows(w: jax.Array | Int8Weight, start: jax.Array, count: int) -> jax.Array:
    """`count` rows of a weight `[O, I]`, from row `start`: float32 `[count, I]`."""
    if isinstance(w, Int8Weight):
        return _cut(w.int8, start, count, 0) * _cut(w.scale, start, count, 0)
    return _cut(w, start, count, 0)


def columns(w: jax.Array | Int8Weight, start: jax.Array, count: int) -> jax.Array:
    """`count` columns of a weight `[O, I]`, from column `start`: float32 `[O, count]`."""
    if isinstance(w, Int8Weight):
        return _cut(w.int8, start, count, 1) * w.scale
    return _cut(w, start, count, 1)


def _cut(x: jax.Array, start: jax.Array, count: int, axis: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, count, axis).astype(jnp.float32)


class Int8Param(nnx.Module):
    """Replaces a weight's `nnx.Param` in a layer with int8 weights."""

    def __init__(self, weight: jax.Array):
        whole, scale = quantize(weight)
        self.int8, self.scale = nnx.Param(whole), nnx.Param(scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.int8.shape

    def __getitem__(self, index) -> Int8Weight:
        return Int8Weight(self.int8[index], self.scale[index])


def weight_param(weight: jax.Array, param_dtype: DTypeLike) -> nnx.Param | Int8Param:
    """A weight `[..., O, I]` as a parameter of any dtype, including int8."""
    if jnp.dtype(param_dtype) == jnp.int8:
        return Int8Param(weight)
    return nnx.Param(weight.astype(param_dtype))


def float_dtype(param_dtype: DTypeLike) -> DTypeLike:
    """The dtype of the parameters that stay floats in an int8 model: norms, biases, tables."""
    return jnp.float32 if jnp.dtype(param_dtype) == jnp.int8 else param_dtype
