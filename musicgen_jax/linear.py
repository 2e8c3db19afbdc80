"""Matrix products with weights in [out, in] layout."""

import jax
import jax.numpy as jnp
from flax import nnx


def linear(x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`x [..., I]` times `w [O, I]`, plus `bias [O]`: `[..., O]` in the dtype of `x`."""
    y = jnp.einsum("...i,oi->...o", x, w.astype(x.dtype))
    return y if bias is None else y + bias.astype(x.dtype)


class Linear(nnx.Module):
    """A linear layer whose weight is [out, in], as PyTorch stores it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        scale = jax.nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0
        )
        self.weight = nnx.Param(scale(rngs.params(), (out_features, in_features), param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., I] -> [..., O] in the compute dtype."""
        bias = None if self.bias is None else self.bias[...]
        return linear(x.astype(self.dtype), self.weight[...], bias)
