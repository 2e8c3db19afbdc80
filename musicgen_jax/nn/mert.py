"""MERT, a transformer that was trained to hear music: audio -> features, about 75 a second.

MERT-v1-95M is HuBERT's base network (transformers' `HubertModel`, parameter for parameter): a group
norm after the first convolution only, no biases in the convolutions, a layer norm before the
projection, post-norm blocks. Its config.json has switches that HuBERT lacks, all of them off: no
constant-Q features (`feature_extractor_cqt`), no `deepnorm`, no `attention_relax`, and it does not
name `conv_pos_batch_norm`, which is to say weight norm, folded here at conversion. The converter
refuses a file that turns one of them on, as MERT-v1-330M does.

Where its usual processor brings the audio to zero mean and unit variance, audiocraft's style
conditioner gives it the samples as they are; so does this package.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import MertConfig
from musicgen_jax.nn.linear import Linear, fan_in_normal
from musicgen_jax.nn.transformer import LayerNorm, attend


class Convolution(nnx.Module):
    """A convolution without padding, `[B, W, I]` to `[B, W', O]`; `weight` is [k, I, O]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        use_bias: bool = False,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.stride, self.groups, self.dtype = stride, groups, jnp.dtype(dtype)
        fan_in = kernel_size * in_channels // groups
        normal = jax.random.normal(rngs.params(), (fan_in, out_channels), param_dtype)
        shape = (kernel_size, in_channels // groups, out_channels)
        self.weight = nnx.Param((normal / fan_in**0.5).reshape(shape))
        self.bias = nnx.Param(jnp.zeros(out_channels, param_dtype)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to `[B, W, I]`."""
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.weight[...].astype(self.dtype),
            window_strides=(self.stride,),
            padding="VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class ChannelNorm(nnx.Module):
    """Group norm with one group per channel: each is normalised over the whole clip."""

    def __init__(self, channels: int, *, dtype: DTypeLike, param_dtype: DTypeLike):
        self.dtype = jnp.dtype(dtype)
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, W, C]` to `[B, W, C]`."""
        x = x.astype(jnp.float32)
        x = x - x.mean(1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(1, keepdims=True) + 1e-5)
        y = x * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return y.astype(self.dtype)


class Block(nnx.Module):
    """`x = norm(x + attention(x)); x = norm(x + feed-forward(x))`, everything with biases."""

    def __init__(
        self, config: MertConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        dim, ffn_dim = config.dim, config.ffn_dim
        types: Any = {"dtype": dtype, "param_dtype": param_dtype}

        def dense(in_features: int, out_features: int) -> Linear:
            return Linear(
                in_features,
                out_features,
                use_bias=True,
                kernel_init=fan_in_normal(),
                **types,
                rngs=rngs,
            )

        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.out = (dense(dim, dim) for _ in range(4))
        self.attention_norm = LayerNorm(dim, **types)
        self.linear1, self.linear2 = dense(dim, ffn_dim), dense(ffn_dim, dim)
        self.ffn_norm = LayerNorm(dim, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`, every frame seeing all."""
        B, T, D = x.shape
        q, k, v = (
            part(x).reshape(B, T, self.num_heads, -1).swapaxes(1, 2)
            for part in (self.q, self.k, self.v)
        )
        seen = attend(q, k, v, jnp.ones((T, T), bool)).swapaxes(1, 2).reshape(B, T, D)
        x = self.attention_norm(x + self.out(seen))
        return self.ffn_norm(x + self.linear2(jax.nn.gelu(self.linear1(x), approximate=False)))


class Mert(nnx.Module):
    """Features of music.

    Args:
      config: sizes.
      dtype: of the computation; norms and softmax are float32 whatever it is.
      param_dtype: of the stored parameters.
      rngs: stream `params` is used.
    """

    def __init__(
        self,
        config: MertConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: Any = {"dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        channels = (1, *config.conv_dim)
        self.convolutions = nnx.List(
            [
                Convolution(channels[i], channels[i + 1], kernel, stride=stride, **types, rngs=rngs)
                for i, (kernel, stride) in enumerate(
                    zip(config.conv_kernel, config.conv_stride, strict=True)
                )
            ]
        )
        self.conv_norm = ChannelNorm(config.conv_dim[0], **types)
        self.feature_norm = LayerNorm(config.conv_dim[-1], **types)
        self.projection = Linear(config.conv_dim[-1], config.dim, use_bias=True, **types, rngs=rngs)
        self.positions = Convolution(
            config.dim,
            config.dim,
            config.conv_pos_kernel,
            groups=config.conv_pos_groups,
            use_bias=True,
            **types,
            rngs=rngs,
        )
        self.norm = LayerNorm(config.dim, **types)
        self.layers = nnx.List(
            [Block(config, **types, rngs=rngs) for _ in range(config.num_layers)]
        )

    def __call__(self, audio: jax.Array) -> jax.Array:
        """The last hidden states.

        Args:
          audio: float `[B, W]`, mono at `config.sample_rate`, as long as gives one frame (400
            samples of the official model). Every row is heard to its end: rows are not padded.

        Returns:
          `[B, T, D]`, T being `config.num_frames(W)`.
        """
        x = audio[..., None]
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x)
            x = jax.nn.gelu(self.conv_norm(x) if i == 0 else x, approximate=False)
        x = self.projection(self.feature_norm(x))
        left = self.config.conv_pos_kernel // 2
        right = self.config.conv_pos_kernel - 1 - left  # as many frames come out as went in
        around = jnp.pad(x, ((0, 0), (left, right), (0, 0)))
        x = self.norm(x + jax.nn.gelu(self.positions(around), approximate=False))
        for layer in self.layers:
            x = layer(x)
        return x
