"""Matrix products: the one place that chooses how to multiply activations by a weight.

Weights keep torch's `[O, I]` layout. This layout is also fast: on a CPU each output is one
contiguous dot product, and generation consists of such products. The choices in this file were
measured with `benchmarks/products.py`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.weights import Int8Weight, LoraWeight, float_dtype, quantize, weight_param

# XLA on CPU calls a fast library for batched products; for unbatched ones only with narrow dtypes,
# and at half the speed. It also spreads a single row over threads only if there is a batch axis. So
# for row counts in this range we split the outputs in two and present the halves as a batch. Above
# this range, transposing the result costs more than the split gains.
_CPU_HALVED_ROWS = {"float32": (1, 96), "bfloat16": (2, 16), "int8": (2, 32)}


def linear(
    x: jax.Array,
    w: jax.Array | Int8Weight | LoraWeight,
    bias: jax.Array | None = None,
    *,
    out_dtype: DTypeLike | None = None,
) -> jax.Array:
    """`x @ w.T + bias`, accumulated in float32 (int32 for an `Int8Weight` on a CPU).

    On a CPU the weight is never widened, since every product would write out a wide copy of it.
    Instead, the activations are narrowed: a bfloat16 weight rounds them to bfloat16, and an int8
    weight rounds each of their rows to int8. Other devices widen int8 while they read it.

    Args:
      x: activations `[..., I]`.
      w: weight `[O, I]`, or `[P, O, I]` for P products at once.
      bias: `[O]` or None.
      out_dtype: dtype of the result (default: the dtype of `x`).

    Returns:
      `[..., O]`, or `[..., P, O]`.
    """
    out_dtype = x.dtype if out_dtype is None else out_dtype
    if isinstance(w, LoraWeight):
        y = linear(x, w.base, out_dtype=jnp.float32)
        y = y + w.scale * _low_rank(x, w).reshape(y.shape)
        return (y if bias is None else y + aligned(bias, y)).astype(out_dtype)
    rows = x.reshape(-1, x.shape[-1])
    # The choice is made inside the program, because it may be exported for several platforms.
    if isinstance(w, Int8Weight):
        y = lax.platform_dependent(rows, w, cpu=_int8_by_int8, default=_widened)
    else:
        common = min(x.dtype, w.dtype, key=lambda d: jnp.dtype(d).itemsize)
        rows, w = rows.astype(common), w.astype(common)
        cpu = _cpu_product(rows, w)
        # Branch only if the two differ: under autodiff the residuals of both branches are kept.
        if cpu is _product:
            y = _product(rows, w)
        else:
            y = lax.platform_dependent(rows, w, cpu=cpu, default=_product)
    if bias is not None:
        y = y + aligned(bias.astype(y.dtype), y)
    return y.astype(out_dtype).reshape(*x.shape[:-1], *w.shape[:-1])


def _low_rank(x: jax.Array, w: LoraWeight) -> jax.Array:
    """The output of the thin matrices of all parts, float32 `[..., O]`, before scaling."""
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
    # Not broadcast_to: XLA on CPU (jax 0.10) fuses that with a reduction that made the rows, and
    # the fusion gives NaN.
    twice = jnp.stack([rows, rows])
    sides = (((2,), (2,)), ((0,), (0,)))
    y = lax.dot_general(halves, twice, sides, preferred_element_type=_accumulator(w))
    return y.reshape(w.shape[0], -1).T


def _halved_product_jvp(primals, tangents):
    """Uses ordinary products: differentiating the halves would transpose whole weights."""
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
    """The fastest product on a CPU; see `_CPU_HALVED_ROWS`."""
    count, outputs = rows.shape[0], w.shape[0]
    if count == 1 and w.dtype != jnp.float32:
        # XLA does not call the library for a single row of a narrow dtype: ten times slower.
        return _doubled_product
    least, most = _CPU_HALVED_ROWS.get(w.dtype.name, (1, 0))
    halved = w.ndim == 2 and least <= count <= most and outputs % 2 == 0
    return _halved_product if halved else _product


def _accumulator(w: jax.Array) -> DTypeLike:
    return jnp.int32 if w.dtype == jnp.int8 else jnp.float32


def _int8_by_int8(rows: jax.Array, w: Int8Weight) -> jax.Array:
    whole, scale = quantize(rows)
    y = _cpu_product(whole, w.int8)(whole, w.int8).astype(jnp.float32)
    return y * aligned(w.scale[..., 0], y) * jnp.expand_dims(scale, range(2, y.ndim))


def _widened(rows: jax.Array, w: Int8Weight) -> jax.Array:
    y = _product(rows, w.int8.astype(rows.dtype))
    return y * aligned(w.scale[..., 0], y)


class Linear(nnx.Module):
    """A weight `[O, I]` and an optional bias `[O]`.

    Args:
      in_features: I.
      out_features: O.
      use_bias: whether to add a bias, initialised to zeros.
      kernel_init: initializer of the weight; receives the shape `[O, I]`.
      dtype: dtype of the computation and the result.
      param_dtype: dtype of the stored parameters; int8 keeps the weight as an `Int8Param`.
      rngs: random streams; uses `params`.
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
    """Truncated normal with variance `scale / I`, for weights `[..., O, I]`."""
    return jax.nn.initializers.variance_scaling(
        scale, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2, batch_axis=()
    )


def fan_in_uniform() -> nnx.Initializer:
    """Uniform within `1 / sqrt(I)`: torch's default initialisation of a layer."""
    return jax.nn.initializers.variance_scaling(
        1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2, batch_axis=()
    )
