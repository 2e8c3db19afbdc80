"""SEANet: the convolutional encoder and decoder around EnCodec's quantizer.

Modules sit under the index that they have in audiocraft's sequential list, so that one name finds
the same layer in both codes; the ELUs between them have no parameters and appear only as calls.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from musicgen_jax.config import EncodecConfig
from musicgen_jax.encodec.conv import Conv1d, ConvTranspose1d
from musicgen_jax.encodec.lstm import LSTM

Layer = Callable[[jax.Array], jax.Array] | None  # None holds an ELU's place


def _conv(config: EncodecConfig, kwargs: dict) -> Callable[..., Conv1d]:
    return partial(
        Conv1d,
        pad_mode=config.pad_mode,
        causal=config.causal,
        group_norm=config.norm == "time_group_norm",
        **kwargs,
    )


class ResnetBlock(nnx.Module):
    """skip(x) + conv1(ELU(conv_k(ELU(x)))), the inner width reduced by `compress`."""

    def __init__(self, dim: int, dilation: int, config: EncodecConfig, **kwargs):
        conv, hidden = _conv(config, kwargs), dim // config.compress
        wide = conv(dim, hidden, config.residual_kernel_size, dilation=dilation)
        self.block = nnx.Dict({"1": wide, "3": conv(hidden, dim, 1)})
        self.shortcut = conv(dim, dim, 1) if config.conv_shortcut else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block to x [B, W, D]."""
        skip = x if self.shortcut is None else self.shortcut(x)
        return skip + self.block["3"](jax.nn.elu(self.block["1"](jax.nn.elu(x))))


def _upsampling(dim: int, ratio: int, config: EncodecConfig, kwargs: dict) -> ConvTranspose1d:
    """Halves the width. A causal one is cut at its end, where it would wait for later frames."""
    return ConvTranspose1d(
        dim,
        dim // 2,
        ratio,
        trim_right=math.ceil(ratio * config.trim_right_ratio) if config.causal else None,
        group_norm=config.norm == "time_group_norm",
        **kwargs,
    )


class _Sequential(nnx.Module):
    """Layers keyed by their index in audiocraft's list; the indices in between are ELUs."""

    def __init__(self, layers: list[Layer]):
        self.layers = nnx.Dict({str(i): m for i, m in enumerate(layers) if m is not None})
        self.length = len(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.length):
            layer = self.layers.get(str(i))
            x = jax.nn.elu(x) if layer is None else layer(x)
        return x


_ELU = None


def _lstm(dim: int, config: EncodecConfig, kwargs) -> list:
    return [LSTM(dim, config.lstm, **kwargs)] if config.lstm else []


def _resnet_blocks(dim: int, config: EncodecConfig, kwargs) -> list:
    return [
        ResnetBlock(dim, config.dilation_base**i, config, **kwargs)
        for i in range(config.n_residual_layers)
    ]


class Encoder(_Sequential):
    """Waveform [B, W, C] -> latents [B, ceil(W / hop), dimension]."""

    def __init__(
        self, config: EncodecConfig, *, dtype=jnp.float32, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        conv, dim = _conv(config, kwargs), config.n_filters
        layers: list[Layer] = [conv(config.channels, dim, config.kernel_size)]
        for ratio in reversed(config.ratios):
            layers += _resnet_blocks(dim, config, kwargs)
            layers += [_ELU, conv(dim, 2 * dim, 2 * ratio, stride=ratio)]
            dim *= 2
        layers += _lstm(dim, config, kwargs)
        layers += [_ELU, conv(dim, config.dimension, config.last_kernel_size)]
        super().__init__(layers)


class Decoder(_Sequential):
    """Latents [B, T, dimension] -> waveform [B, T * hop, C]."""

    def __init__(
        self, config: EncodecConfig, *, dtype=jnp.float32, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        conv, dim = _conv(config, kwargs), config.n_filters * 2 ** len(config.ratios)
        layers: list[Layer] = [conv(config.dimension, dim, config.kernel_size)]
        layers += _lstm(dim, config, kwargs)
        for ratio in config.ratios:
            layers += [_ELU, _upsampling(dim, ratio, config, kwargs)]
            dim //= 2
            layers += _resnet_blocks(dim, config, kwargs)
        layers += [_ELU, conv(dim, config.channels, config.last_kernel_size)]
        super().__init__(layers)
