"""The T5 encoder (v1.0), which reads the prompt.

Version 1.0 has ReLU and no gate in the feed-forward, no biases, and RMSNorm before each sub-layer.
The attention has no factor 1/sqrt(H): T5's initialisation folds it into the query weights.
Positions enter only as a learnt bias on the attention scores; all layers share one table.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import T5Config
from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.linear import Linear, fan_in_normal


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every relative position in a text of `length` tokens.

    Each direction has half of the buckets. Half of a direction's buckets hold one distance each;
    the other half hold ranges that grow geometrically up to `max_distance`. The edges of the ranges
    are computed in integers: at 16, 32 and 64 a float32 logarithm would depend on the maths
    library.

    Args:
      length: L, the number of tokens.
      num_buckets: number of buckets for both directions together, at least 4.
      max_distance: all distances from this one on share the last bucket.

    Returns:
      int32 [2 L - 1], for key position - query position = -(L - 1) ... L - 1.
    """
    per_direction = num_buckets // 2
    exact = per_direction // 2
    ranges = per_direction - exact
    relative = np.arange(1 - length, length)
    distance = np.minimum(np.abs(relative), max_distance)
    # `bucket - exact` is floor(ranges * log(d / exact) / log(max_distance / exact)). So range r
    # begins where d^ranges * exact^r >= max_distance^r * exact^ranges; Python's integers are exact.
    starts = [
        next(
            d
            for d in range(exact, max_distance + 1)
            if d**ranges * exact**r >= max_distance**r * exact**ranges
        )
        for r in range(1, ranges)
    ]
    geometric = exact + np.searchsorted(starts, distance, side="right")
    bucket = np.where(distance < exact, distance, geometric)
    return (bucket + np.where(relative > 0, per_direction, 0)).astype(np.int32)


def relative_position_bias(table: jax.Array, length: int, max_distance: int) -> jax.Array:
    """The bias for the attention scores, float32 [N, L, L], from `table` [buckets, N]."""
    buckets = relative_position_buckets(length, table.shape[0], max_distance)
    by_relative = table.astype(jnp.float32)[buckets]  # [2 L - 1, N]
    position = np.arange(length)
    relative = position[None, :] - position[:, None]  # key - query
    return by_relative[relative + length - 1].transpose(2, 0, 1)


class _Dtypes(typing.TypedDict):
    dtype: DTypeLike
    param_dtype: DTypeLike


class RMSNorm(nnx.Module):
    """Scales to unit root mean square, measured in float32; does not subtract the mean."""

    def __init__(
        self,
        dim: int,
        *,
        epsilon: float,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
    ):
        self.epsilon = epsilon
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((dim,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., E] -> [..., E] in the compute dtype."""
        wide = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(variance + self.epsilon)).astype(self.dtype)
        return normed * aligned(self.scale[...].astype(self.dtype), x)


class Layer(nnx.Module):
    """Self-attention, then feed-forward, each pre-normed and with a residual connection."""

    def __init__(
        self,
        config: T5Config,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        width, inner = config.d_model, config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        dtypes = _Dtypes(dtype=dtype, param_dtype=param_dtype)
        epsilon = config.layer_norm_epsilon
        self.attention_norm = RMSNorm(width, epsilon=epsilon, **dtypes)
        # Scores are not divided by sqrt(H); the query's initial weights are smaller instead.
        small = fan_in_normal(1 / config.d_kv)
        self.q = Linear(width, inner, kernel_init=small, **dtypes, rngs=rngs)
        self.k = Linear(width, inner, **dtypes, rngs=rngs)
        self.v = Linear(width, inner, **dtypes, rngs=rngs)
        self.o = Linear(inner, width, **dtypes, rngs=rngs)
        self.ffn_norm = RMSNorm(width, epsilon=epsilon, **dtypes)
        self.wi = Linear(width, config.d_ff, **dtypes, rngs=rngs)
        self.wo = Linear(config.d_ff, width, **dtypes, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array, bias: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
          x: [B, L, E].
          mask: [B, L] bool.
          bias: float32 [N, L, L], the relative position bias.

        Returns:
          [B, L, E].
        """
        x = x + self.attend(self.attention_norm(x), mask, bias)
        return x + self.wo(jax.nn.relu(self.wi(self.ffn_norm(x))))

    def attend(self, x: jax.Array, mask: jax.Array, bias: jax.Array) -> jax.Array:
        """Each position attends to the unmasked ones, with a float32 softmax: [B, L, E]."""
        q, k, v = (
            proj(x).reshape(*x.shape[:2], self.num_heads, -1) for proj in (self.q, self.k, self.v)
        )  # [B, L, N, H]
        scores = jnp.einsum("bqnh,bknh->bnqk", q, k, preferred_element_type=jnp.float32)
        scores = scores + bias[None]
        # A large negative number, not -inf: a fully masked row must stay finite.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return self.o(jnp.einsum("bnqk,bknh->bqnh", weights, v).reshape(*x.shape[:2], -1))


class T5Encoder(nnx.Module):
    """Maps token ids to hidden states; has no dropout.

    A new encoder is initialised like the original T5 (Mesh TensorFlow's scheme), so it can be
    trained.
    """

    def __init__(
        self,
        config: T5Config,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config = config
        dtypes = _Dtypes(dtype=dtype, param_dtype=param_dtype)
        normal = jax.nn.initializers.normal
        self.shared = nnx.Embed(
            config.vocab_size, config.d_model, embedding_init=normal(1.0), **dtypes, rngs=rngs
        )
        self.relative_attention_bias = nnx.Embed(
            config.relative_attention_num_buckets,
            config.num_heads,
            embedding_init=normal(config.d_model**-0.5),
            **dtypes,
            rngs=rngs,
        )
        self.layers = nnx.List(
            [Layer(config, **dtypes, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.final_norm = RMSNorm(config.d_model, epsilon=config.layer_norm_epsilon, **dtypes)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes a batch of prompts.

        Hidden states at unmasked positions do not depend on masked positions. At masked positions,
        and in a row without a prompt, they are finite but meaningless.

        Args:
          ids: int32 [B, L], each less than the vocabulary size.
          mask: [B, L] bool or int, nonzero at tokens.

        Returns:
          [B, L, E] in the compute dtype.
        """
        mask = jnp.asarray(mask).astype(bool)
        bias = relative_position_bias(
            self.relative_attention_bias.embedding[...],
            ids.shape[1],
            self.config.relative_attention_max_distance,
        )
        x = self.shared(jnp.asarray(ids))
        for layer in self.layers:
            x = layer(x, mask, bias)
        return self.final_norm(x)
