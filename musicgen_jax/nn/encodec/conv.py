"""Convolutions with EnCodec's padding rules, channels last: [B, W, C]."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.group_norm import GroupNorm


def pad_amounts(
    length: int, kernel_size: int, stride: int, *, causal: bool = False
) -> tuple[int, int]:
    """Left and right padding for a convolution that puts every sample in a full window.

    The right side also gets the samples missing from the last window. So a strided convolution
    gives ceil(length / stride) frames (audiocraft, modules/conv.py).
    """
    total = kernel_size - stride
    right = 0 if causal else total // 2
    windows = max(-(-(length - kernel_size + total) // stride), 0)
    extra = windows * stride + kernel_size - total - length
    return total - right, right + extra


def pad1d(x: jax.Array, left: int, right: int, mode: str) -> jax.Array:
    """Pads the W axis of x [B, W, C]; `mode` is "reflect" or "constant" (zeros).

    If the reflection is longer than the signal, this function appends zeros, reflects, and removes
    the zeros, as the original does. (`jnp.pad` would reflect back and forth instead.)
    """
    width = x.shape[1]
    short = max(left, right) - width + 1 if mode == "reflect" else 0
    if short > 0:
        x = jnp.pad(x, ((0, 0), (0, short), (0, 0)))
        x = jnp.pad(x, ((0, 0), (left, right), (0, 0)), mode="reflect")
        return x[:, : x.shape[1] - short]
    return jnp.pad(x, ((0, 0), (left, right), (0, 0)), mode=mode)


def _init(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, dtype) -> nnx.Param:
    bound = 1.0 / math.sqrt(fan_in)
    return nnx.Param(jax.random.uniform(rngs.params(), shape, dtype, -bound, bound))


def _norm(group_norm: bool, channels: int, dtype, param_dtype) -> Callable[[jax.Array], jax.Array]:
    types = {"dtype": dtype, "param_dtype": param_dtype}
    return GroupNorm(channels, (1, 2), **types) if group_norm else _same


def _same(x: jax.Array) -> jax.Array:
    return x


class Conv1d(nnx.Module):
    """Convolution [B, W, I] -> [B, ceil(W / stride), O]; `weight` is [kernel, I, O]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        pad_mode: str = "reflect",
        causal: bool = False,
        group_norm: bool = False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.pad_mode, self.causal, self.dtype = pad_mode, causal, dtype
        fan_in = in_channels * kernel_size
        shape = (kernel_size, in_channels, out_channels)
        self.weight = _init(rngs, shape, fan_in, param_dtype)
        self.bias = _init(rngs, (out_channels,), fan_in, param_dtype)
        self.norm = _norm(group_norm, out_channels, dtype, param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the convolution to x [B, W, I]."""
        reach = (self.kernel_size - 1) * self.dilation + 1
        left, right = pad_amounts(x.shape[1], reach, self.stride, causal=self.causal)
        weight = self.weight[...].astype(self.dtype)
        x = pad1d(x.astype(self.dtype), left, right, self.pad_mode)
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            window_strides=(self.stride,),
            padding="VALID",
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return self.norm(y + aligned(self.bias[...].astype(self.dtype), y))


@jax.custom_jvp
def _of_pairs(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Convolves x [B, W, I], with a zero at each end, with `weight` [2, I, O]: [B, W + 1, O]."""
    return jax.lax.conv_general_dilated(
        x, weight, (1,), ((1, 1),), dimension_numbers=("NWC", "WIO", "NWC")
    )


def _of_pairs_as_product(x: jax.Array, weight: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    pairs = jnp.concatenate([x[:, :-1], x[:, 1:]], axis=-1)
    return pairs @ weight.reshape(-1, weight.shape[-1])


@_of_pairs.defjvp
def _of_pairs_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """Differentiates products: the convolution's own gradient is far slower on a CPU."""
    (x, weight), (dx, dweight) = primals, tangents
    tangent = _of_pairs_as_product(dx, weight) + _of_pairs_as_product(x, dweight)
    return _of_pairs(x, weight), tangent


class ConvTranspose1d(nnx.Module):
    """Transposed convolution [B, W, I] -> [B, W * stride, O] with a kernel of two strides.

    `weight` is [2 * stride, I, O], meaning y[t * stride + j] += x[t] @ weight[j]. Each output
    sample depends on two inputs. So all phases together are one convolution with kernel size 2 and
    a set of channels per phase. This inserts no zeros, which makes decoding fast.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        trim_right: int | None = None,
        group_norm: bool = False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the parameters.

        Args:
          in_channels: I.
          out_channels: O.
          stride: upsampling factor.
          trim_right: how many of the `stride` surplus samples to cut off at the end (default:
            half); the rest are cut off at the start.
          group_norm: whether to normalise the output.
          dtype: dtype of the computation.
          param_dtype: dtype of the stored parameters.
          rngs: random streams; uses `params`.
        """
        self.stride, self.dtype = stride, dtype
        self.trim_right = stride // 2 if trim_right is None else trim_right
        shape = (2 * stride, in_channels, out_channels)
        self.weight = _init(rngs, shape, 2 * in_channels, param_dtype)
        self.bias = _init(rngs, (out_channels,), 2 * in_channels, param_dtype)
        self.norm = _norm(group_norm, out_channels, dtype, param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Upsamples x [B, W, I] by the stride."""
        batch, width, channels = x.shape
        stride, out_channels = self.stride, self.bias.shape[0]
        weight = self.weight[...].astype(self.dtype)
        # The kernel's second half applies to the previous input, so the halves swap:
        # [2, stride, I, O] -> [2, I, stride * O].
        phases = weight.reshape(2, stride, channels, out_channels)[::-1].swapaxes(1, 2)
        phases = phases.reshape(2, channels, stride * out_channels)
        y = _of_pairs(x.astype(self.dtype), phases)  # [B, W + 1, stride * O]
        y = y.reshape(batch, (width + 1) * stride, out_channels)
        y = self.norm(y + aligned(self.bias[...].astype(self.dtype), y))
        return y[:, stride - self.trim_right : y.shape[1] - self.trim_right]
