"""SEANet: the convolutional encoder and decoder around EnCodec's quantizer.

Modules keep their index in audiocraft's sequential list, so that a layer has the same name in both
code bases. The ELUs between them have no parameters and appear only as calls.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec.conv import Conv1d, ConvTranspose1d
from musicgen_jax.nn.encodec.lstm import LSTM
from musicgen_jax.nn.encodec.tiles import Tiling, in_tiles
from musicgen_jax.runtime.tuning import tuning

_CPU_TILE = tuning("cpu").codec_tile or 0

Layer = Callable[[jax.Array], jax.Array] | None  # None stands for an ELU


def _conv(config: EncodecConfig, kwargs: dict) -> Callable[..., Conv1d]:
    return partial(
        Conv1d,
        pad_mode=config.pad_mode,
        causal=config.causal,
        group_norm=config.norm == "time_group_norm",
        **kwargs,
    )


def elu(x: jax.Array) -> jax.Array:
    """`x` where positive, else `exp(x) - 1`; the error is at most float32's rounding of 1.

    `jax.nn.elu` uses `expm1`, which on a CPU costs three times as much: a tenth of all decoding.
    """
    return jnp.where(x > 0, x, jnp.exp(jnp.where(x > 0, 0, x)) - 1)


class ResnetBlock(nnx.Module):
    """skip(x) + conv1(ELU(conv_k(ELU(x)))), with the inner width divided by `compress`."""

    def __init__(self, dim: int, dilation: int, config: EncodecConfig, **kwargs):
        conv, hidden = _conv(config, kwargs), dim // config.compress
        wide = conv(dim, hidden, config.residual_kernel_size, dilation=dilation)
        self.block = nnx.Dict({"1": wide, "3": conv(hidden, dim, 1)})
        self.shortcut = conv(dim, dim, 1) if config.conv_shortcut else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block to x [B, W, D]."""
        skip = x if self.shortcut is None else self.shortcut(x)
        return skip + self.block["3"](elu(self.block["1"](elu(x))))


def _upsampling(dim: int, ratio: int, config: EncodecConfig, kwargs: dict) -> ConvTranspose1d:
    """Upsamples and halves the width.

    A causal layer is trimmed at its end, which would otherwise depend on later frames.
    """
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

    def __init__(self, layers: list[Layer], config: EncodecConfig):
        self.layers = nnx.Dict({str(i): m for i, m in enumerate(layers) if m is not None})
        self.length = len(layers)
        self.config = config

    def __call__(self, x: jax.Array, layers: range | None = None) -> jax.Array:
        for i in range(self.length) if layers is None else layers:
            layer = self.layers.get(str(i))
            x = elu(x) if layer is None else layer(x)
        return x

    def _in_tiles(self, x: jax.Array, layers: range, tiling: Tiling) -> jax.Array:
        """Applies `layers`: on a CPU in tiles that fit its cache, elsewhere all at once."""
        whole = partial(self.__call__, layers=layers)
        if self.config.norm == "time_group_norm":  # needs the whole signal at once
            return whole(x)
        # Numbers per unit, at the rate of the audio. At most an eighth of them is computed twice.
        values = max(x.shape[0], 1) * self.config.n_filters * tiling.samples_in * tiling.samples_out
        tile = max(_CPU_TILE // values, 8 * (tiling.left + tiling.right))
        tiled = partial(in_tiles, whole, tiling=tiling, tile=tile)
        return jax.lax.platform_dependent(x, cpu=tiled, default=whole)


_ELU = None


def _lstm(dim: int, config: EncodecConfig, kwargs) -> list:
    return [LSTM(dim, config.lstm, **kwargs)] if config.lstm else []


def _resnet_blocks(dim: int, config: EncodecConfig, kwargs) -> list:
    return [
        ResnetBlock(dim, config.dilation_base**i, config, **kwargs)
        for i in range(config.n_residual_layers)
    ]


def conv_reach(config: EncodecConfig, kernel_size: int, dilation: int = 1) -> np.ndarray:
    """How many samples to the left and right a convolution of stride 1 depends on."""
    total = (kernel_size - 1) * dilation
    right = 0 if config.causal else total // 2
    return np.array([total - right, right])


def _blocks_reach(config: EncodecConfig) -> np.ndarray:
    dilations = (config.dilation_base**i for i in range(config.n_residual_layers))
    reaches = (conv_reach(config, config.residual_kernel_size, each) for each in dilations)
    return sum(reaches, np.zeros(2, int))


def encoder_reach(config: EncodecConfig, ratios: tuple[int, ...]) -> tuple[int, int]:
    """Units to the left and right that one unit, downsampled by `ratios`, depends on."""
    reach = np.zeros(2, int)
    for ratio in ratios:
        left = ratio if config.causal else ratio - ratio // 2
        reach = reach * ratio + [left, 2 * ratio - 1 - left] + _blocks_reach(config)
    left, right = -(-(reach + conv_reach(config, config.kernel_size)) // math.prod(ratios))
    return int(left), int(right)


def decoder_reach(config: EncodecConfig, ratios: tuple[int, ...]) -> tuple[int, int]:
    """Units to the left and right, before upsampling by `ratios`, that audio depends on."""
    reach = conv_reach(config, config.last_kernel_size)
    for ratio in reversed(ratios):
        # An upsampled sample depends on two neighbours, one on each side.
        reach = -(-(reach + _blocks_reach(config)) // ratio) + 1
    left, right = reach
    return int(left), int(right)


class Encoder(_Sequential):
    """Waveform [B, W, C] -> latents [B, ceil(W / hop), dimension]."""

    def __init__(
        self, config: EncodecConfig, *, dtype=jnp.float32, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        conv, dim = _conv(config, kwargs), config.n_filters
        layers: list[Layer] = [conv(config.channels, dim, config.kernel_size)]
        for ratio in reversed(config.ratios):
            self.coarse = len(layers)  # where the last ratio's layers begin
            layers += _resnet_blocks(dim, config, kwargs)
            layers += [_ELU, conv(dim, 2 * dim, 2 * ratio, stride=ratio)]
            dim *= 2
        layers += _lstm(dim, config, kwargs)
        layers += [_ELU, conv(dim, config.dimension, config.last_kernel_size)]
        super().__init__(layers, config)

    def in_tiles(self, x: jax.Array) -> jax.Array:
        """Like `__call__`, but on a CPU one tile at a time, up to the last ratio."""
        ratios = self.config.ratios[1:]
        tiling = Tiling(math.prod(ratios), 1, *encoder_reach(self.config, ratios))
        x = self._in_tiles(x, range(self.coarse), tiling)
        return self(x, range(self.coarse, self.length))


class Decoder(_Sequential):
    """Latents [B, T, dimension] -> waveform [B, T * hop, C]."""

    def __init__(
        self, config: EncodecConfig, *, dtype=jnp.float32, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        conv, dim = _conv(config, kwargs), config.n_filters * 2 ** len(config.ratios)
        layers: list[Layer] = [conv(config.dimension, dim, config.kernel_size)]
        layers += _lstm(dim, config, kwargs)
        for i, ratio in enumerate(config.ratios):
            layers += [_ELU, _upsampling(dim, ratio, config, kwargs)]
            dim //= 2
            layers += _resnet_blocks(dim, config, kwargs)
            if i == 0:
                self.coarse = len(layers)  # where the first ratio's layers end
        layers += [_ELU, conv(dim, config.channels, config.last_kernel_size)]
        super().__init__(layers, config)

    def in_tiles(self, x: jax.Array) -> jax.Array:
        """Like `__call__`, but on a CPU one tile at a time, after the first ratio."""
        ratios = self.config.ratios[1:]
        tiling = Tiling(1, math.prod(ratios), *decoder_reach(self.config, ratios))
        x = self(x, range(self.coarse))
        return self._in_tiles(x, range(self.coarse, self.length), tiling)
