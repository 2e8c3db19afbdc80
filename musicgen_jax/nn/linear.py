"""Matrix products: the one place that chooses how a weight meets its activations.

Weights keep torch's `[O, I]` layout. It is also the fast one: on a CPU each output is then one
contiguous dot product, and generation is nothing but such products. What is chosen here was
measured by `benchmarks/products.py`.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

# XLA's CPU compiler hands a product with a batch dimension to a fast library, one without it only
# for narrow types, and that at up to half of the speed; and a single row it spreads over threads
# sooner if there is a batch. So between these numbers of rows the outputs are cut into halves that
# pretend to be one. Of more rows an ordinary product is sooner done than the halves turned over.
_CPU_HALVED_ROWS = {"float32": (1, 96), "bfloat16": (2, 16), "int8": (2, 16)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """A weight as whole numbers, each row (output channel) with a scale of its own."""

    int8: jax.Array  # [..., O, I]
    scale: jax.Array  # float32 [..., O, 1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight: `[..., O, I]`."""
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
    """A weight with a product of two thin matrices added to its rows, part by part (LoRA).

    A weight that is not fused has one part; queries, keys and values in one weight are three.
    A part that nothing is added to has None.
    """

    base: jax.Array  # [O, I], or [P, O / P, I]
    a: tuple[jax.Array | None, ...]  # P x [R, I]
    b: tuple[jax.Array | None, ...]  # P x [O / P, R]
    scale: float = dataclasses.field(metadata={"static": True})  # of the products

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight: `[O, I]`, or `[P, O / P, I]`."""
        return self.base.shape

    def __getitem__(self, rows: slice) -> "LoraWeight":
        """Some of the rows, whole parts of them."""
        part = self.shape[0] // len(self.a)
        start, stop, _ = rows.indices(self.shape[0])
        if start % part or stop % part:
            raise ValueError(f"rows {start} to {stop} are not whole parts of {part}")
        parts = slice(start // part, stop // part)
        return LoraWeight(self.base[rows], self.a[parts], self.b[parts], self.scale)


def quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest whole multiples of a scale per row, the largest of a row being 127.

    Args:
      x: float `[..., I]`.

    Returns:
      int8 `[..., I]` and float32 `[..., 1]`, whose product is `x` up to 1/254 of the row's maximum.
    """
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(-1, keepdims=True) / 127
    return jnp.rint(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale


def rows(w: jax.Array | Int8Weight, start: jax.Array, count: int) -> jax.Array:
    """Some rows of a weight `[O, I]`, float32 `[count, I]`."""
    if isinstance(w, Int8Weight):
        return _cut(w.int8, start, count, 0) * _cut(w.scale, start, count, 0)
    return _cut(w, start, count, 0)


def columns(w: jax.Array | Int8Weight, start: jax.Array, count: int) -> jax.Array:
    """Some columns of a weight `[O, I]`, float32 `[O, count]`."""
    if isinstance(w, Int8Weight):
        return _cut(w.int8, start, count, 1) * w.scale
    return _cut(w, start, count, 1)


def _cut(x: jax.Array, start: jax.Array, count: int, axis: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, count, axis).astype(jnp.float32)


def linear(
    x: jax.Array,
    w: jax.Array | Int8Weight | LoraWeight,
    bias: jax.Array | None = None,
    *,
    out_dtype: DTypeLike | None = None,
) -> jax.Array:
    """`x @ w.T + bias`, accumulated in float32 (int32 for an `Int8Weight` on a CPU).

    On a CPU the weight is never widened, since a wide copy of it would be written out for every
    product: a bfloat16 weight meets bfloat16 activations, and for an int8 weight each row of the
    activations is rounded to int8 too. Other devices widen int8 while they read it.

    Args:
      x: activations `[..., I]`.
      w: weight `[O, I]`, or `[P, O, I]` for P products at once.
      bias: `[O]` or None.
      out_dtype: of the result; that of `x` by default.

    Returns:
      `[..., O]`, or `[..., P, O]`.
    """
    out_dtype = x.dtype if out_dtype is None else out_dtype
    if isinstance(w, LoraWeight):
        y = linear(x, w.base, out_dtype=jnp.float32)
        y = y + w.scale * _low_rank(x, w).reshape(y.shape)
        return (y if bias is None else y + bias).astype(out_dtype)
    rows = x.reshape(-1, x.shape[-1])
    # The choice is in the program, which may be exported for several platforms.
    if isinstance(w, Int8Weight):
        y = lax.platform_dependent(rows, w, cpu=_int8_by_int8, default=_widened)
    else:
        common = min(x.dtype, w.dtype, key=lambda d: jnp.dtype(d).itemsize)
        rows, w = rows.astype(common), w.astype(common)
        cpu = _cpu_product(rows, w)
        # Only where they differ: of a choice between two, training would keep what both need.
        if cpu is _product:
            y = _product(rows, w)
        else:
            y = lax.platform_dependent(rows, w, cpu=cpu, default=_product)
    if bias is not None:
        y = y + bias.astype(y.dtype)
    return y.astype(out_dtype).reshape(*x.shape[:-1], *w.shape[:-1])


def _low_rank(x: jax.Array, w: LoraWeight) -> jax.Array:
    """What the thin matrices of every part add, float32 `[..., O]`, before it is scaled."""
    nothing = jnp.zeros((*x.shape[:-1], math.prod(w.shape[:-1]) // len(w.a)), jnp.float32)
    parts = [
        nothing if a is None or b is None else linear(linear(x, a), b, out_dtype=jnp.float32)
        for a, b in zip(w.a, w.b, strict=True)
    ]
    return jnp.concatenate(parts, axis=-1)


def _product(rows: jax.Array, w: jax.Array) -> jax.Array:
    sides = (((1,), (w.ndim - 1,)), ((), ()))
    return lax.dot_general(rows, w, sides, preferred_element_type=_accumulator(w))


@jax.custom_jvp
def _halved_product(rows: jax.Array, w: jax.Array) -> jax.Array:
    halves = w.reshape(2, w.shape[0] // 2, -1)
    twice = jnp.broadcast_to(rows, (2, *rows.shape))
    sides = (((2,), (2,)), ((0,), (0,)))
    y = lax.dot_general(halves, twice, sides, preferred_element_type=_accumulator(w))
    return y.reshape(w.shape[0], -1).T


def _halved_product_jvp(primals, tangents):
    """Derivatives are ordinary products: those of the halves would move whole weights about."""
    (rows, w), (rows_dot, w_dot) = primals, tangents
    zero = jax.custom_derivatives.SymbolicZero
    y = _halved_product(rows, w)
    moved = [
        _product(a, b)
        for a, b in ((rows_dot, w), (rows, w_dot))
        if not isinstance(a, zero) and not isinstance(b, zero)
    ]
    return y, sum(moved[1:], moved[0]) if moved else jnp.zeros_like(y)


_halved_product.defjvp(_halved_product_jvp, symbolic_zeros=True)


def _doubled_product(rows: jax.Array, w: jax.Array) -> jax.Array:
    rows = jnp.concatenate([rows, rows])
    return _cpu_product(rows, w)(rows, w)[:1]


def _cpu_product(rows: jax.Array, w: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """How a CPU multiplies fastest; see `_CPU_HALVED_ROWS`."""
    count, outputs = rows.shape[0], w.shape[0]
    if count == 1 and w.dtype != jnp.float32:
        # A single row of a narrow type misses the library and takes ten times as long.
        return _doubled_product
    least, most = _CPU_HALVED_ROWS.get(w.dtype.name, (1, 0))
    halved = w.ndim == 2 and least <= count <= most and outputs % 2 == 0
    return _halved_product if halved else _product


def _accumulator(w: jax.Array) -> DTypeLike:
    return jnp.int32 if w.dtype == jnp.int8 else jnp.float32


def _int8_by_int8(rows: jax.Array, w: Int8Weight) -> jax.Array:
    whole, scale = quantize(rows)
    y = _cpu_product(whole, w.int8)(whole, w.int8).astype(jnp.float32)
    return y * w.scale[..., 0] * jnp.expand_dims(scale, range(2, y.ndim))


def _widened(rows: jax.Array, w: Int8Weight) -> jax.Array:
    return _product(rows, w.int8.astype(rows.dtype)) * w.scale[..., 0]


class Int8Param(nnx.Module):
    """What stands in a layer in place of a weight's `nnx.Param` if it is kept as int8."""

    def __init__(self, weight: jax.Array):
        whole, scale = quantize(weight)
        self.int8, self.scale = nnx.Param(whole), nnx.Param(scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.int8.shape

    def __getitem__(self, index) -> Int8Weight:
        return Int8Weight(self.int8[index], self.scale[index])


def weight_param(weight: jax.Array, param_dtype: DTypeLike) -> "nnx.Param | Int8Param":
    """A weight `[..., O, I]` as a parameter of a dtype, int8 among them."""
    if jnp.dtype(param_dtype) == jnp.int8:
        return Int8Param(weight)
    return nnx.Param(weight.astype(param_dtype))


def float_dtype(param_dtype: DTypeLike) -> DTypeLike:
    """The dtype of those parameters (norms, biases, tables) that stay floats in an int8 model."""
    return jnp.float32 if jnp.dtype(param_dtype) == jnp.int8 else param_dtype


class Linear(nnx.Module):
    """A weight `[O, I]` and, if wanted, a bias `[O]`.

    Args:
      in_features: I.
      out_features: O.
      use_bias: whether there is a bias (zeros at first).
      kernel_init: initializer of the weight; sees the shape `[O, I]`.
      dtype: of the computation and the result.
      param_dtype: of the stored parameters; int8 keeps the weight as an `Int8Param`.
      rngs: stream `params` is used.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kernel_init = kernel_init or fan_in_normal()
        self.dtype = jnp.dtype(dtype)
        other = float_dtype(param_dtype)
        weight = kernel_init(rngs.params(), (out_features, in_features), other)
        self.weight = weight_param(weight, param_dtype)
        self.bias = nnx.Param(jnp.zeros(out_features, other)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., I]` to `[..., O]`."""
        bias = None if self.bias is None else self.bias[...]
        return linear(x.astype(self.dtype), self.weight[...], bias)


def fan_in_normal(scale: float = 1.0) -> nnx.Initializer:
    """Truncated normal of variance `scale / I` for weights `[..., O, I]`."""
    return jax.nn.initializers.variance_scaling(
        scale, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2, batch_axis=()
    )


def fan_in_uniform() -> nnx.Initializer:
    """Uniform within `1 / sqrt(I)`: what torch gives a layer that nobody initialised."""
    return jax.nn.initializers.variance_scaling(
        1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2, batch_axis=()
    )
