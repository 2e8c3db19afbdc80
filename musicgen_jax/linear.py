"""Matrix products: the one place that chooses how a weight meets its activations.

Weights keep torch's `[O, I]` layout. It is also the fast one: on a CPU each output is then one
contiguous dot product, and generation is nothing but such products.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

# Up to so many rows of float32 (one example with guidance), a mat-vec per row beats one product of
# all rows on a CPU: a mat-vec streams the weight at full memory bandwidth, a thin product does not.
_MAX_MATVEC_ROWS = 2


def linear(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None = None,
    *,
    out_dtype: DTypeLike | None = None,
) -> jax.Array:
    """`x @ w.T + bias`, accumulated in float32.

    The weight is never widened: a bfloat16 weight meets bfloat16 activations, since a CPU would
    otherwise write out a float32 copy of it for every product.

    Args:
      x: activations `[..., I]`.
      w: weight `[O, I]`, or `[P, O, I]` for P products at once.
      bias: `[O]` or None.
      out_dtype: of the result; that of `x` by default.

    Returns:
      `[..., O]`, or `[..., P, O]`.
    """
    out_dtype = x.dtype if out_dtype is None else out_dtype
    common = min(x.dtype, w.dtype, key=lambda d: jnp.dtype(d).itemsize)
    rows = x.astype(common).reshape(-1, x.shape[-1])
    w = w.astype(common)
    if common == jnp.float32 and 1 < rows.shape[0] <= _MAX_MATVEC_ROWS:
        y = lax.platform_dependent(rows, w, cpu=_matvecs, default=_product)
    else:
        y = _product(rows, w)
    if bias is not None:
        y = y + bias.astype(y.dtype)
    return y.astype(out_dtype).reshape(*x.shape[:-1], *w.shape[:-1])


def _product(rows: jax.Array, w: jax.Array) -> jax.Array:
    dims = (((1,), (w.ndim - 1,)), ((), ()))
    return lax.dot_general(rows, w, dims, preferred_element_type=jnp.float32)


def _matvecs(rows: jax.Array, w: jax.Array) -> jax.Array:
    dims = (((w.ndim - 1,), (0,)), ((), ()))
    return jnp.stack([lax.dot_general(w, row, dims) for row in rows])


class Linear(nnx.Module):
    """A weight `[O, I]` and, if wanted, a bias `[O]`.

    Args:
      in_features: I.
      out_features: O.
      use_bias: whether there is a bias (zeros at first).
      kernel_init: initializer of the weight; sees the shape `[O, I]`.
      dtype: of the computation and the result.
      param_dtype: of the stored parameters.
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
        self.weight = nnx.Param(
            kernel_init(rngs.params(), (out_features, in_features), param_dtype)
        )
        self.bias = nnx.Param(jnp.zeros(out_features, param_dtype)) if use_bias else None

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
