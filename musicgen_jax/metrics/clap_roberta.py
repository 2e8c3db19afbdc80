"""RoBERTa, CLAP's text tower: a post-norm transformer; the first token stands for the text."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import RobertaConfig
from musicgen_jax.metrics.clap_tokenizer import PAD_ID
from musicgen_jax.metrics.norm import Norm, gelu
from musicgen_jax.nn.attention import attend
from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.linear import Linear


class Block(nnx.Module):
    """`x = norm(x + attention(x)); x = norm(x + feed-forward(x))`."""

    def __init__(self, config: RobertaConfig, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        dim, epsilon = config.dim, config.layer_norm_epsilon
        types: Any = {"use_bias": True, "param_dtype": param_dtype, "rngs": rngs}
        self.num_heads = config.num_heads
        self.qkv, self.out = Linear(dim, 3 * dim, **types), Linear(dim, dim, **types)
        self.attention_norm = Norm(dim, epsilon)
        self.linear1 = Linear(dim, config.ffn_dim, **types)
        self.linear2 = Linear(config.ffn_dim, dim, **types)
        self.ffn_norm = Norm(dim, epsilon)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """`[B, L, D]` and bool `[B, 1, 1, L]` to `[B, L, D]`."""
        B, L, D = x.shape
        qkv = self.qkv(x).reshape(B, L, 3, self.num_heads, -1)
        q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))  # [B, N, L, H]
        seen = attend(q, k, v, mask).swapaxes(1, 2).reshape(B, L, D)
        x = self.attention_norm(x + self.out(seen))
        return self.ffn_norm(x + self.linear2(gelu(self.linear1(x))))


class Roberta(nnx.Module):
    """The text tower.

    Args:
      config: sizes.
      param_dtype: of the stored matrices.
      rngs: stream `params` is used.
    """

    def __init__(self, config: RobertaConfig, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        types: Any = {"param_dtype": param_dtype, "rngs": rngs}
        normal = jax.nn.initializers.normal(0.02)
        self.tokens = nnx.Param(normal(rngs.params(), (config.vocab_size, config.dim), param_dtype))
        self.positions = nnx.Param(
            normal(rngs.params(), (config.positions, config.dim), param_dtype)
        )
        self.token_type = nnx.Param(jnp.zeros(config.dim, param_dtype))
        self.norm = Norm(config.dim, config.layer_norm_epsilon)
        self.blocks = nnx.List([Block(config, **types) for _ in range(config.num_layers)])
        self.pooler = Linear(config.dim, config.dim, use_bias=True, **types)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Embeds texts.

        Args:
          ids: int32 [B, L], padded at the end.

        Returns:
          float32 [B, D].
        """
        used = ids != PAD_ID
        # The first token's position is 2, and that of all padding 1.
        positions = jnp.where(used, jnp.cumsum(used, axis=1), 0) + PAD_ID
        x = self.tokens[...][ids] + self.positions[...][positions]
        x = self.norm(x + aligned(self.token_type[...], x))
        for block in self.blocks:
            x = block(x, used[:, None, None])
        return jnp.tanh(self.pooler(x[:, 0]))
