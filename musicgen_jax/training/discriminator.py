"""The adversary of codec training: convolutions over complex spectrograms of several sizes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicgen_jax.nn.axes import aligned
from musicgen_jax.training import weight_norm
from musicgen_jax.training.spectrograms import hann, stft

Maps = list[list[jax.Array]]  # per discriminator, per layer


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """MS-STFT discriminator (audiocraft, adversarial/discriminators/msstftd.py).

    All layers have the same width: audiocraft's `filters_scale` fails unless it is 1.
    """

    filters: int = 32
    n_ffts: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    hop_lengths: tuple[int, ...] = (256, 512, 128, 64, 32)
    win_lengths: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    kernel_size: tuple[int, ...] = (3, 9)  # frames, frequencies
    dilations: tuple[int, ...] = (1, 2, 4)  # over frames
    negative_slope: float = 0.3
    weight_norm: bool = True

    def __post_init__(self) -> None:
        sizes = len(self.n_ffts), len(self.hop_lengths), len(self.win_lengths)
        if len(set(sizes)) != 1 or not sizes[0]:
            raise ValueError(f"n_ffts, hop_lengths and win_lengths must pair up, got {sizes} sizes")
        if any(win > n_fft for win, n_fft in zip(self.win_lengths, self.n_ffts, strict=True)):
            raise ValueError("a window must fit in its FFT: each win_length at most its n_fft")
        if len(self.kernel_size) != 2 or any(k % 2 == 0 for k in self.kernel_size):
            raise ValueError(f"kernel_size must be two odd numbers, got {self.kernel_size}")
        if self.filters < 1:
            raise ValueError(f"filters must be at least 1, got {self.filters}")


class Conv2d(nnx.Module):
    """Convolution [B, T, F, I] -> [B, T, ceil(F / stride), O]; `weight` is [time, freq, I, O]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        *,
        stride: int = 1,
        dilation: int = 1,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`stride` applies to frequencies, `dilation` to frames."""
        self.stride, self.dilation, self.dtype = stride, dilation, dtype
        bound = 1 / math.sqrt(in_channels * kernel_size[0] * kernel_size[1])
        uniform = functools.partial(
            jax.random.uniform, dtype=param_dtype, minval=-bound, maxval=bound
        )
        self.weight = nnx.Param(uniform(rngs.params(), (*kernel_size, in_channels, out_channels)))
        self.bias = nnx.Param(uniform(rngs.params(), (out_channels,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the convolution to x [B, T, F, I]."""
        x, weight = x.astype(self.dtype), self.weight[...].astype(self.dtype)
        batch, frames, freqs, channels = x.shape
        kernel, stride = weight.shape[1], self.stride
        time, left = (weight.shape[0] - 1) * self.dilation // 2, (kernel - 1) // 2
        # Fold `stride` neighbouring frequencies into channels, so that the stride becomes 1. Then
        # the backward pass has no zeros between output gradients, which is several times faster on
        # a CPU.
        taps, out = -(-kernel // stride), -(-freqs // stride)
        width = (out + taps - 1) * stride
        x = jnp.pad(x, ((0, 0), (0, 0), (left, max(width - freqs - left, 0)), (0, 0)))[:, :, :width]
        x = x.reshape(batch, frames, width // stride, stride * channels)
        weight = jnp.pad(weight, ((0, 0), (0, taps * stride - kernel), (0, 0), (0, 0)))
        weight = weight.reshape(weight.shape[0], taps, stride * channels, -1)
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            window_strides=(1, 1),
            padding=((time, time), (0, 0)),
            rhs_dilation=(self.dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + aligned(self.bias[...].astype(self.dtype), y)


class STFTDiscriminator(nnx.Module):
    """Discriminator of one spectrogram size: one logit for each place in time and frequency."""

    def __init__(
        self,
        config: DiscriminatorConfig,
        channels: int,
        size: int,
        *,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`size` is the index of the spectrogram in the config."""
        self.n_fft, self.hop_length = config.n_ffts[size], config.hop_lengths[size]
        self.win_length, self.slope = config.win_lengths[size], config.negative_slope
        conv = functools.partial(Conv2d, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        filters, kernel, square = config.filters, config.kernel_size, (config.kernel_size[0],) * 2
        layers = [conv(2 * channels, filters, kernel)]
        layers += [conv(filters, filters, kernel, stride=2, dilation=d) for d in config.dilations]
        layers += [conv(filters, filters, square)]
        self.convs = nnx.Dict({str(i): layer for i, layer in enumerate(layers)})
        self.conv_post = conv(filters, 1, square)

    def __call__(self, audio: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Judges audio [B, C, W].

        Returns:
          logits [B, T, F', 1], high where the audio seems real, and the output [B, T, F'', filters]
          of each layer.
        """
        norm = np.sqrt(np.square(hann(self.win_length)).sum())
        spectrum = stft(audio, self.n_fft, self.hop_length, self.win_length) / norm
        parts = jnp.concatenate([spectrum.real, spectrum.imag], axis=1)  # [B, 2 C, T, F]
        x, maps = jnp.moveaxis(parts, 1, -1), []
        for i in range(len(self.convs)):
            x = jax.nn.leaky_relu(self.convs[str(i)](x), self.slope)
            maps.append(x)
        return self.conv_post(x), maps


class MultiScaleSTFTDiscriminator(nnx.Module):
    """One discriminator for each spectrogram size, without shared weights."""

    def __init__(
        self,
        config: DiscriminatorConfig,
        channels: int,
        *,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.discriminators = nnx.Dict(
            {
                str(i): STFTDiscriminator(config, channels, i, **kwargs)
                for i in range(len(config.n_ffts))
            }
        )

    def __call__(self, audio: jax.Array) -> tuple[list[jax.Array], Maps]:
        """Logits and feature maps of all discriminators for audio [B, C, W]."""
        outputs = [self.discriminators[str(i)](audio) for i in range(len(self.discriminators))]
        return [logits for logits, _ in outputs], [maps for _, maps in outputs]


def split(params: dict, config: DiscriminatorConfig) -> dict:
    """The trained form of the parameters: all layers except the first use weight normalisation."""

    def kept_axis(path: weight_norm.Path, weight: jax.Array) -> int | None:
        return 3 if config.weight_norm and path[-2:] != ("convs", "0") else None

    return weight_norm.split(params, kept_axis)
