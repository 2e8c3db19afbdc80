"""The convolutional layers of both branches, channels last: [B, T, F, C].

The frequency branch works along F, with a kernel that covers one frame. The time branch works along
T, with F = 1. One layer class serves both: `over_frequency` says which axis it strides over.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import HTDemucsConfig
from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.encodec.conv import ConvTranspose1d
from musicgen_jax.nn.group_norm import GroupNorm
from musicgen_jax.nn.linear import Linear


class Conv2d(nnx.Module):
    """Zero-padded convolution [B, T, F, I] -> [B, T, F, O].

    `weight` is [kT, kF, I, O], with odd kT and kF.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        *,
        dilation: int = 1,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dilation, self.dtype = dilation, dtype
        shape = (*kernel_size, in_channels, out_channels)
        self.weight, self.bias = _conv_params(shape, param_dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the convolution; the dilation is along T."""
        weight = self.weight[...].astype(self.dtype)
        reach = [size // 2 for size in weight.shape[:2]]
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            weight,
            window_strides=(1, 1),
            padding=[(self.dilation * reach[0],) * 2, (reach[1],) * 2],
            rhs_dilation=(self.dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + aligned(self.bias[...].astype(self.dtype), y)


class StridedConv(nnx.Module):
    """Convolution [N, n, I] -> [N, ceil(n / stride), O] with kernel size 2 * stride."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.stride, self.dtype = stride, dtype
        shape = (2 * stride, in_channels, out_channels)
        self.weight, self.bias = _conv_params(shape, param_dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Downsamples; zeros fill up the last stride and pad half a stride at both ends."""
        half = self.stride // 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.weight[...].astype(self.dtype),
            window_strides=(self.stride,),
            padding=[(half, half + -x.shape[1] % self.stride)],
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y + aligned(self.bias[...].astype(self.dtype), y)


class LayerScale(nnx.Module):
    """One factor per channel, initially small."""

    def __init__(self, dim: int, init: float, *, param_dtype: DTypeLike):
        self.scale = nnx.Param(jnp.full(dim, init, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., C]` to `[..., C]`."""
        return x * aligned(self.scale[...].astype(x.dtype), x)


class _DConvLayer(nnx.Module):
    def __init__(self, dim: int, hidden: int, dilation: int, *, dtype, param_dtype, rngs):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.conv1 = Conv2d(dim, hidden, (3, 1), dilation=dilation, **types, rngs=rngs)
        self.norm1 = GroupNorm(hidden, (1, 3), **types)
        self.conv2 = Linear(hidden, 2 * dim, use_bias=True, **types, rngs=rngs)
        self.norm2 = GroupNorm(2 * dim, (1, 3), **types)
        self.gamma = LayerScale(dim, 1e-3, param_dtype=param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = gelu(self.norm1(self.conv1(x)))
        return self.gamma(jax.nn.glu(self.norm2(self.conv2(y))))


class DConv(nnx.Module):
    """Residual branches along T, separate for each frequency; the dilation doubles."""

    def __init__(self, dim: int, config: HTDemucsConfig, **kwargs):
        hidden = dim // config.dconv_comp
        self.layers = nnx.List(
            [_DConvLayer(dim, hidden, 2**i, **kwargs) for i in range(config.dconv_depth)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, F, C]` to `[B, T, F, C]`."""
        for layer in self.layers:
            x = x + layer(x)
        return x


class EncoderLayer(nnx.Module):
    """Strided convolution, residual branches, gate; divides F or T by the stride."""

    def __init__(
        self, in_dim: int, dim: int, config: HTDemucsConfig, *, over_frequency: bool, **kwargs
    ):
        self.axis = 2 if over_frequency else 1
        self.conv = StridedConv(in_dim, dim, config.stride, **kwargs)
        self.dconv = DConv(dim, config, **kwargs) if config.dconv_mode & 1 else None
        self.rewrite = Linear(dim, 2 * dim, use_bias=True, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, F, C]` to `[B, T, F / stride, O]`, or `[B, ceil(T / stride), 1, O]`."""
        y = gelu(_along(self.conv, x, self.axis))
        if self.dconv is not None:
            y = self.dconv(y)
        return jax.nn.glu(self.rewrite(y))


class DecoderLayer(nnx.Module):
    """Skip, gate, residual branches, transposed convolution; multiplies F or T by the stride."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        config: HTDemucsConfig,
        *,
        over_frequency: bool,
        last: bool,
        **kwargs,
    ):
        self.axis, self.last = 2 if over_frequency else 1, last
        reach = 2 * config.context + 1
        kernel_size = (reach, reach if over_frequency else 1)
        self.rewrite = Conv2d(dim, 2 * dim, kernel_size, **kwargs)
        self.dconv = DConv(dim, config, **kwargs) if config.dconv_mode & 2 else None
        self.conv_tr = ConvTranspose1d(dim, out_dim, config.stride, **kwargs)

    def __call__(self, x: jax.Array, skip: jax.Array, length: int) -> jax.Array:
        """Undoes the encoder layer of this level.

        Args:
          x: `[B, T, F, C]`.
          skip: output of that encoder layer, of the same shape.
          length: length of the growing axis, before the encoder layer filled up its last stride.
        """
        y = jax.nn.glu(self.rewrite(x + skip))
        if self.dconv is not None:
            y = self.dconv(y)
        y = jax.lax.slice_in_dim(_along(self.conv_tr, y, self.axis), 0, length, axis=self.axis)
        return y if self.last else gelu(y)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU."""
    return jax.nn.gelu(x, approximate=False)


def _along(convolution, x: jax.Array, axis: int) -> jax.Array:
    """Applies a convolution of `[N, n, C]` to one axis; axes between it and C must have size 1."""
    batch, frames, bins, channels = x.shape
    y = convolution(x.reshape(-1, x.shape[axis], channels))
    return y.reshape(batch, *((frames, -1) if axis == 2 else (-1, bins)), y.shape[-1])


def _conv_params(shape: tuple[int, ...], dtype: DTypeLike, rngs) -> tuple[nnx.Param, nnx.Param]:
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    weight = jax.random.uniform(rngs.params(), shape, dtype, -bound, bound)
    bias = jax.random.uniform(rngs.params(), shape[-1:], dtype, -bound, bound)
    return nnx.Param(weight), nnx.Param(bias)
