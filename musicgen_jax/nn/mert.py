"""MERT, a transformer trained to understand music: audio -> features, about 75 per second.

MERT-v1-95M is HuBERT's base network (transformers' `HubertModel`, parameter for parameter). It has
a group norm after the first convolution only, no biases in the convolutions, a layer norm before
the projection, and post-norm blocks. Its config.json has switches that HuBERT lacks, and all of
them are off: constant-Q features (`feature_extractor_cqt`), `deepnorm` and `attention_relax`. It
does not set `conv_pos_batch_norm`, so the position convolution uses weight norm, which the
converter folds. The converter refuses a file that turns on one of the switches, as MERT-v1-330M
does.

MERT's usual processor normalises the audio to zero mean and unit variance. audiocraft's style
conditioner passes the samples unchanged, and so does this package.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import MertConfig
from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.group_norm import GroupNorm
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
        return y if self.bias is None else y + aligned(self.bias[...].astype(self.dtype), y)


class Block(nnx.Module):
    """`x = norm(x + attention(x)); x = norm(x + feed-forward(x))`; every layer has a bias."""

    def __init__(
        self, config: MertConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        dim, ffn_dim = config.dim, config.ffn_dim
        types: Any = {"dtype": dtype, "param_dtype": param_dtype}
        dense = partial(Linear, use_bias=True, kernel_init=fan_in_normal(), **types, rngs=rngs)
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.out = (dense(dim, dim) for _ in range(4))
        self.attention_norm = LayerNorm(dim, **types)
        self.linear1, self.linear2 = dense(dim, ffn_dim), dense(ffn_dim, dim)
        self.ffn_norm = LayerNorm(dim, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`; every frame attends to all frames."""
        B, T, D = x.shape
        q, k, v = (
            part(x).reshape(B, T, self.num_heads, -1).swapaxes(1, 2)
            for part in (self.q, self.k, self.v)
        )
        seen = attend(q, k, v, jnp.ones((T, T), bool)).swapaxes(1, 2).reshape(B, T, D)
        x = self.attention_norm(x + self.out(seen))
        return self.ffn_norm(x + self.linear2(jax.nn.gelu(self.linear1(x), approximate=False)))


class Mert(nnx.Module):
    """Computes features of music.

    Args:
      config: model sizes.
      dtype: dtype of the computation; norms and softmax are always float32.
      param_dtype: dtype of the stored parameters.
      rngs: random streams; uses `params`.
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
        self.conv_norm = GroupNorm(config.conv_dim[0], (1,), **types)  # over the whole clip
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
        """Computes the last layer's hidden states.

        Args:
          audio: float `[B, W]`, mono at `config.sample_rate`, long enough for one frame (400
            samples in the official model). There is no mask, so rows must not be padded.

        Returns:
          `[B, T, D]`, where T is `config.num_frames(W)`.
        """
        x = audio[..., None]
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x)
            x = jax.nn.gelu(self.conv_norm(x) if i == 0 else x, approximate=False)
        x = self.projection(self.feature_norm(x))
        left = self.config.conv_pos_kernel // 2
        right = self.config.conv_pos_kernel - 1 - left  # keeps the number of frames
        around = jnp.pad(x, ((0, 0), (left, right), (0, 0)))
        x = self.norm(x + jax.nn.gelu(self.positions(around), approximate=False))
        for layer in self.layers:
            x = layer(x)
        return x
