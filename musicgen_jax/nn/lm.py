"""The language model: K embeddings, a transformer, K heads.

At step s it reads the K tokens of that step (see `patterns`) and predicts those of step s + 1.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import LMConfig
from musicgen_jax.nn import patterns, transformer
from musicgen_jax.nn.chroma_conditioner import ChromaConditioner
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.linear import Int8Weight, fan_in_normal, float_dtype, linear, weight_param
from musicgen_jax.nn.style_conditioner import StyleConditioner
from musicgen_jax.nn.text_conditioner import TextConditioner
from musicgen_jax.nn.transformer import (
    CrossCache,
    FoldedCross,
    LayerCache,
    LayerNorm,
    Transformer,
    sinusoidal_positions,
)


class Embedding(nnx.Module):
    """K tables of V + 1 vectors, the last for the special token; a step is the sum of K of them."""

    def __init__(self, config: LMConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs):
        self.dtype = jnp.dtype(dtype)
        shape = (config.n_q, config.card + 1, config.dim)
        self.embedding = nnx.Param(fan_in_normal()(rngs.params(), shape, param_dtype))

    def __call__(self, steps: jax.Array) -> jax.Array:
        """int32 `[B, K, S]` to `[B, S, D]`."""
        tables = self.embedding[...]  # [K, V + 1, D]
        # By book and token at once: taken apart first, every table would be copied at every step.
        return sum(tables[k, steps[:, k]].astype(self.dtype) for k in range(tables.shape[0]))  # type: ignore[return-value]


class Heads(nnx.Module):
    """K heads of V outputs, as one product. The special token has none: it is never predicted."""

    def __init__(self, config: LMConfig, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        shape = (config.n_q, config.card, config.dim)
        weight = fan_in_normal()(rngs.params(), shape, float_dtype(param_dtype))
        self.weight = weight_param(weight, param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, S, D]` to float32 logits `[B, K, S, V]`."""
        K, V, D = self.weight.shape
        weight = self.weight[...]
        flat = weight.flat() if isinstance(weight, Int8Weight) else weight.reshape(K * V, D)
        logits = linear(x, flat, out_dtype=jnp.float32)
        return logits.reshape(*x.shape[:2], K, V).swapaxes(1, 2)


class LM(nnx.Module):
    """MusicGen's language model over delayed codebooks.

    In the text models (`conditioning="cross"`) every block attends to `condition.cross`. In the
    melody and style models (`"prepend"`) `condition.prefix`, then `condition.cross` stand in front
    of the tokens. Positions are counted row by row over what is not masked, so a row's numbers do
    not depend on how far its neighbours in the batch reach.

    Args:
      config: sizes.
      dtype: of the computation; norms, softmax and logits are float32 whatever it is.
      param_dtype: of the stored parameters. With int8 the transformer's matrices and the heads are
        kept as int8, everything else as float32.
      cache_dtype: of keys and values in generation; None chooses, see `transformer.cache_dtype`.
      cache_groups: blocks that they are kept in; None chooses, see `transformer.cache_groups`.
      lean_cross: whether generation spares cross-attention what it can; None chooses, see
        `transformer.lean_cross`.
      rngs: stream `params` is used.
    """

    def __init__(
        self,
        config: LMConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        cache_dtype: DTypeLike | None = None,
        cache_groups: int | None = None,
        lean_cross: bool | None = None,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        # Tables, and what runs once in a generation.
        floats = {"dtype": dtype, "param_dtype": float_dtype(param_dtype)}
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.cache_dtype = jnp.dtype(cache_dtype or transformer.cache_dtype(dtype))
        self.cache_groups = cache_groups or transformer.cache_groups(config.num_heads)
        lean = transformer.lean_cross(param_dtype) if lean_cross is None else lean_cross
        self.lean_cross = lean and config.conditioning == "cross"
        self.text_conditioner = TextConditioner(config.text_dim, config.dim, **floats, rngs=rngs)
        self.chroma_conditioner = (
            ChromaConditioner(config.chroma_bins, config.dim, **floats, rngs=rngs)
            if config.chroma_bins
            else None
        )
        # In float32 whatever the language model is: a rounded distance picks another code.
        self.style_conditioner = (
            StyleConditioner(config.style, config.dim, rngs=rngs) if config.style else None
        )
        self.emb = Embedding(config, **floats, rngs=rngs)
        self.transformer = Transformer(
            config.dim,
            config.num_heads,
            config.num_layers,
            config.ffn_dim,
            cross_attention=config.conditioning == "cross",
            **types,
            rngs=rngs,
        )
        self.out_norm = LayerNorm(config.dim, **types)
        self.heads = Heads(config, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, steps: jax.Array, condition: Condition) -> jax.Array:
        """The whole sequence at once, each step seeing itself and what came before.

        Args:
          steps: int32 `[B, K, S]`, the special token where there is no code.
          condition: B rows.

        Returns:
          float32 logits `[B, K, S, V]`; those of step s predict step s + 1.
        """
        return self.heads(self.hidden(steps, condition))

    def hidden(self, steps: jax.Array, condition: Condition) -> jax.Array:
        """What the heads read, `[B, S, D]`; the arguments are those of a call."""
        x, prefix_mask = self._with_prefix(self.emb(steps), condition)
        seen = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool)) & prefix_mask[:, None, :]
        x = x + self._positions(jnp.cumsum(prefix_mask, axis=1) - 1)
        cross = None
        if self.config.conditioning == "cross" and condition.text is not None:
            cross = condition.text.vectors
        x, _ = self.transformer(x, seen, cross, self._cross_mask(condition))
        return self.out_norm(x[:, -steps.shape[2] :])

    def fill_nulls(self, condition: Condition) -> Condition:
        """Null rows as a prefix model was trained with them: attended, and taking up positions.

        Where there is no text stands one zero vector (audiocraft tokenizes it to a lone, masked
        </s>), and one where there is no style; where there is no melody, the melody of silence. In
        text models nothing is attended in place of nothing: there this changes nothing.

        Args:
          condition: B rows; a part of a row is null if its mask is all False.

        Returns:
          B rows, no part of them null.
        """
        if self.config.conditioning != "prepend":
            return condition
        text, audio = condition.text, condition.audio
        if text is not None:
            empty = ~text.mask.any(axis=1, keepdims=True)
            mask = text.mask | (empty & (jnp.arange(text.mask.shape[1]) == 0))
            text = Embedded(jnp.where(empty[..., None], 0, text.vectors), mask)
            if self.config.style and audio is None:
                absent = jnp.zeros((text.vectors.shape[0], 1), bool)
                audio = Embedded(jnp.zeros((*absent.shape, self.config.dim), self.dtype), absent)
        if audio is not None:
            empty = ~audio.mask.any(axis=1, keepdims=True)
            null, attended = self._null_audio(audio.vectors.shape[1])
            vectors = jnp.where(empty[..., None], null.astype(audio.vectors.dtype), audio.vectors)
            audio = Embedded(vectors, audio.mask | (empty & attended))
        return Condition(text, audio)

    def _null_audio(self, length: int) -> tuple[jax.Array, jax.Array]:
        """What stands where audio is missing, `[P, D]`, and which of it is attended, `[P]`."""
        if self.chroma_conditioner is None:
            null = jnp.zeros((length, self.config.dim), self.dtype)
            return null, jnp.arange(length) == 0
        return self.chroma_conditioner.null(length), jnp.ones(length, bool)

    def init_cache(
        self, batch: int, length: int, dtype: DTypeLike | None = None
    ) -> tuple[LayerCache, ...]:
        """Empty caches for `length` slots (prefix and steps), in `self.cache_dtype` by default."""
        groups, dim = self.cache_groups, self.config.dim
        zeros = partial(
            jnp.zeros, (batch, groups, length, dim // groups), dtype or self.cache_dtype
        )
        return tuple(LayerCache(zeros(), zeros()) for _ in range(self.config.num_layers))

    def cross_kv(
        self, condition: Condition, *, fold: bool = True
    ) -> tuple[CrossCache | FoldedCross, ...] | None:
        """Cross-attention's keys and values, constant over a generation; None without any.

        With `fold` and `lean_cross` those of few tokens have weights folded into them, see
        `FoldedCross`.
        """
        if self.config.conditioning != "cross" or condition.text is None:
            return None
        # Few, and read whole at every step: nothing is gained by rounding them to eight bits.
        wide = self.cache_dtype.itemsize > 1
        dtype = self.cache_dtype if wide else self.dtype
        fold = fold and self.lean_cross
        return self.transformer.cross_kv(
            condition.text.vectors, dtype, self.cache_groups, fold=fold
        )

    def prefill(
        self,
        steps: jax.Array,
        cache: tuple[LayerCache, ...],
        cross_kv: tuple[CrossCache | FoldedCross, ...] | None,
        condition: Condition,
    ) -> tuple[LayerCache, ...]:
        """Fills an empty cache with the prefix and the first steps in one pass.

        Steps that are only padding may follow: `decode` overwrites a slot before it looks there.

        Args:
          steps: int32 `[B, K, S]`; S may be 0.
          cache: from `init_cache`, at least prefix + S slots long.
          cross_kv: from `cross_kv`.
          condition: B rows; in text models fewer will do, see `Transformer`.

        Returns:
          the filled cache.
        """
        x, prefix_mask = self._with_prefix(self.emb(steps), condition)
        length = x.shape[1]
        x = x + self._positions(jnp.cumsum(prefix_mask, axis=1) - 1)
        seen = jnp.tril(jnp.ones((length, length), bool)) & prefix_mask[:, None, :]
        seen = jnp.pad(seen, ((0, 0), (0, 0), (0, cache[0].k.shape[2] - length)))
        _, filled = self.transformer(x, seen, cross_kv, self._cross_mask(condition), cache)
        assert filled is not None
        return filled

    def decode(
        self,
        tokens: jax.Array,
        step: jax.Array | int,
        cache: tuple[LayerCache, ...],
        cross_kv: tuple[CrossCache | FoldedCross, ...] | None,
        condition: Condition,
    ) -> tuple[jax.Array, tuple[LayerCache, ...]]:
        """One step, given the cache of all before it.

        Args:
          tokens: int32 `[B, K]`, those of `step`.
          step: its number.
          cache: what came before.
          cross_kv: from `cross_kv`.
          condition: as for `prefill`, the same at every step.

        Returns:
          float32 logits `[B, K, V]` that predict step + 1, and the cache with this step in it.
        """
        prefix_mask = self._prefix(condition)[1]  # [B or 1, P]
        slot = prefix_mask.shape[1] + step
        later = cache[0].k.shape[2] - prefix_mask.shape[1]
        seen = jnp.pad(prefix_mask, ((0, 0), (0, later)), constant_values=True)
        seen = seen & (jnp.arange(cache[0].k.shape[2]) <= slot)
        position = prefix_mask.sum(axis=1, keepdims=True) + step  # [B or 1, 1]
        x = self.emb(tokens[:, :, None]) + self._positions(position)  # [B, 1, D]
        x, new_cache = self.transformer(
            x, seen[:, None], cross_kv, self._cross_mask(condition), cache, slot
        )
        assert new_cache is not None
        return self.heads(self.out_norm(x))[:, :, 0], new_cache

    def prefix_length(self, condition: Condition) -> int:
        """P, the slots that stand in front of step 0, masked ones included."""
        return self._prefix(condition)[1].shape[1]

    def _prefix(self, condition: Condition) -> tuple[jax.Array | None, jax.Array]:
        """What stands in front of the tokens, `[B, P, D]` or None, and its mask `[B or 1, P]`."""
        parts = [part for part in (condition.audio, condition.text) if part is not None]
        if self.config.conditioning != "prepend" or not parts:
            return None, jnp.ones((1, 0), bool)
        vectors = [part.vectors.astype(self.dtype) for part in parts]
        return jnp.concatenate(vectors, 1), jnp.concatenate([part.mask for part in parts], 1)

    def _with_prefix(self, x: jax.Array, condition: Condition) -> tuple[jax.Array, jax.Array]:
        """The prefix in front of `[B, S, D]`, and which of the whole is real: `[B or 1, P + S]`."""
        prefix, mask = self._prefix(condition)
        mask = jnp.pad(mask, ((0, 0), (0, x.shape[1])), constant_values=True)
        return x if prefix is None else jnp.concatenate([prefix, x], axis=1), mask

    def _positions(self, positions: jax.Array) -> jax.Array:
        return sinusoidal_positions(positions, self.config.dim).astype(self.dtype)

    def _cross_mask(self, condition: Condition) -> jax.Array | None:
        if self.config.conditioning != "cross" or condition.text is None:
            return None
        return condition.text.mask


def compute_predictions(
    lm: LM, codes: jax.Array, condition: Condition
) -> tuple[jax.Array, jax.Array]:
    """Next-token logits in the order of the codes, for training and scoring.

    As in audiocraft (`LMModel.compute_predictions`) the sequence ends with the last frame of
    book 0, so a book delayed by d gets no prediction for its last d frames.

    Args:
      lm: the model.
      codes: int32 `[B, K, T]`.
      condition: B rows.

    Returns:
      float32 logits `[B, K, T, V]`, NaN where there is no prediction; and a mask, bool
      `[B, K, T]`, True where there is one.
    """
    return predictions_of(lm, compute_hidden(lm, codes, condition))


def compute_hidden(lm: LM, codes: jax.Array, condition: Condition) -> jax.Array:
    """What the heads read where they predict frame t of the first book: `[B, T, D]`."""
    steps = patterns.to_steps(codes, lm.config.delays, lm.config.special_token)
    return lm.hidden(steps[:, :, : codes.shape[2]], condition)


def predictions_of(lm: LM, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `compute_predictions` returns, of what `compute_hidden` does."""
    delays, (batch, num_frames) = lm.config.delays, hidden.shape[:2]
    # Prediction s is about step s + 1; of the last max(delays) steps there is none.
    around = ((0, 0), (0, 0), (1, max(delays)), (0, 0))
    logits = patterns.to_codes(jnp.pad(lm.heads(hidden), around, constant_values=jnp.nan), delays)
    predicted = np.arange(num_frames) + np.asarray(delays)[:, None] < num_frames  # [K, T]
    return logits, jnp.broadcast_to(predicted, (batch, *predicted.shape))
