"""The language model: K embeddings, a transformer, K heads.

At step s it reads the K tokens of that step (see `patterns`) and predicts the K tokens of step
s + 1.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import LMConfig
from musicgen_jax.nn import patterns
from musicgen_jax.nn.attention import LayerCache
from musicgen_jax.nn.chroma_conditioner import ChromaConditioner
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.linear import fan_in_normal, linear
from musicgen_jax.nn.style_conditioner import StyleConditioner
from musicgen_jax.nn.text_conditioner import TextConditioner
from musicgen_jax.nn.transformer import Cross, LayerNorm, Transformer, sinusoidal_positions
from musicgen_jax.nn.weights import Int8Weight, float_dtype, weight_param
from musicgen_jax.runtime.tuning import Tuning
from musicgen_jax.runtime.tuning import tuning as tuning_of


class Embedding(nnx.Module):
    """K tables of V + 1 vectors; the last vector is the special token's.

    A step is embedded as the sum of K vectors, one from each table.
    """

    def __init__(self, config: LMConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs):
        self.dtype = jnp.dtype(dtype)
        shape = (config.n_q, config.card + 1, config.dim)
        self.embedding = nnx.Param(fan_in_normal()(rngs.params(), shape, param_dtype))

    def __call__(self, steps: jax.Array) -> jax.Array:
        """int32 `[B, K, S]` to `[B, S, D]`."""
        tables = self.embedding[...]  # [K, V + 1, D]
        # Index by book and token at once: `tables[k]` alone would copy a table at every step.
        return sum(tables[k, steps[:, k]].astype(self.dtype) for k in range(tables.shape[0]))  # type: ignore[return-value]


class Heads(nnx.Module):
    """K heads of V outputs, computed as one product.

    The special token has no output, because the model never predicts it.
    """

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

    In the text models (`conditioning="cross"`) every block attends to the text. In the melody and
    style models (`"prepend"`) the tokens are prefixed with the audio and then the text. Position
    numbers skip masked positions, so a row does not depend on the length of its neighbours. With
    `chroma_stride` they follow time; see `LMConfig`.

    Args:
      config: model sizes.
      dtype: dtype of the computation; norms, softmax and logits are always float32.
      param_dtype: dtype of the stored parameters. With int8 the transformer's matrices and the
        heads are int8, and everything else is float32.
      tuning: how generation runs (default: the tuning for this device). It can be replaced at any
        time.
      rngs: random streams; uses `params`.
    """

    def __init__(
        self,
        config: LMConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        tuning: Tuning | None = None,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        # For tables, and for modules that run once per generation.
        floats = {"dtype": dtype, "param_dtype": float_dtype(param_dtype)}
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.param_dtype = jnp.dtype(param_dtype)
        self.tuning = tuning or tuning_of()
        self.text_conditioner = TextConditioner(config.text_dim, config.dim, **floats, rngs=rngs)
        self.chroma_conditioner = (
            ChromaConditioner(config.chroma_bins, config.dim, **floats, rngs=rngs)
            if config.chroma_bins
            else None
        )
        # Always float32: a rounded distance could select a different code.
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

    @property
    def cache_dtype(self) -> np.dtype:
        """The dtype of the keys and values that generation caches."""
        return jnp.dtype(self.tuning.cache_dtype or self.dtype)

    @property
    def cache_groups(self) -> int:
        """G, the number of blocks into which the cache groups the heads' keys and values."""
        return self.config.num_heads // (self.tuning.heads_per_block or self.config.num_heads)

    @property
    def skip_null_rows(self) -> bool:
        """Whether a condition should contain only the rows that are not null."""
        cross = self.config.conditioning == "cross" and not self.config.hears
        return cross and self.param_dtype.name in self.tuning.skip_null_rows

    def __call__(self, steps: jax.Array, condition: Condition) -> jax.Array:
        """Runs the whole sequence at once; each step attends to itself and earlier steps.

        Args:
          steps: int32 `[B, K, S]`, with the special token in slots without a code.
          condition: the condition, B rows.

        Returns:
          float32 logits `[B, K, S, V]`; the logits of step s predict step s + 1.
        """
        return self.heads(self.hidden(steps, condition))

    def hidden(self, steps: jax.Array, condition: Condition) -> jax.Array:
        """The input of the heads, `[B, S, D]`; takes the same arguments as `__call__`."""
        x, prefix_mask = self._with_prefix(self.emb(steps), condition)
        seen = jnp.tril(jnp.ones((1, x.shape[1], x.shape[1]), bool)) & prefix_mask[:, None, :]
        x = x + self._positions(self._numbers(prefix_mask, condition))
        cross = None
        if self.config.conditioning == "cross" and condition.text is not None:
            cross = condition.text.vectors
        x, _ = self.transformer(x, seen, cross, self._cross_mask(condition))
        return self.out_norm(x[:, -steps.shape[2] :])

    def fill_nulls(self, condition: Condition) -> Condition:
        """Fills null rows as in training, for prefix models.

        Prefix models attend to null rows and count their positions. A missing text becomes one zero
        vector (audiocraft tokenizes it to a single, masked </s>). A missing style also becomes one
        zero vector, and a missing melody becomes the melody of silence. Text models do not attend
        to null rows, so their condition is returned unchanged.

        Args:
          condition: B rows; a part of a row is null if its mask is all False.

        Returns:
          B rows, none with a null part.
        """
        text, audio = condition.text, condition.audio
        if text is not None and self.config.conditioning == "prepend":
            empty = ~text.mask.any(axis=1, keepdims=True)
            mask = text.mask | (empty & (jnp.arange(text.mask.shape[1])[None] == 0))
            text = Embedded(jnp.where(empty[..., None], 0, text.vectors), mask)
            if self.config.style and audio is None:
                absent = jnp.zeros((text.vectors.shape[0], 1), bool)
                audio = Embedded(jnp.zeros((*absent.shape, self.config.dim), self.dtype), absent)
        if audio is not None:
            empty = ~audio.mask.any(axis=1, keepdims=True)
            null, attended = self._null_audio(audio.vectors.shape[1])
            vectors = jnp.where(
                empty[..., None], null[None].astype(audio.vectors.dtype), audio.vectors
            )
            audio = Embedded(vectors, audio.mask | (empty & attended[None]))
        return Condition(text, audio)

    def _null_audio(self, length: int) -> tuple[jax.Array, jax.Array]:
        """The vectors that replace missing audio, `[P, D]`, and their mask, `[P]`."""
        if self.chroma_conditioner is None:
            null = jnp.zeros((length, self.config.dim), self.dtype)
            return null, jnp.arange(length) == 0
        return self.chroma_conditioner.null(length), jnp.ones(length, bool)

    def init_cache(
        self, batch: int, length: int, dtype: DTypeLike | None = None
    ) -> tuple[LayerCache, ...]:
        """Empty caches of `length` slots (prefix and steps); default dtype: `cache_dtype`."""
        groups, dim = self.cache_groups, self.config.dim
        zeros = partial(
            jnp.zeros, (batch, groups, length, dim // groups), dtype or self.cache_dtype
        )
        return tuple(LayerCache(zeros(), zeros()) for _ in range(self.config.num_layers))

    def cross_kv(self, condition: Condition, *, fold: bool = True) -> tuple[Cross, ...] | None:
        """Prepares cross-attention to the text, once per generation; None if there is no text.

        With `fold`, the weights are folded into a short text if the tuning asks for it.
        """
        if self.config.conditioning != "cross" or condition.text is None:
            return None
        # The text is short: an 8-bit cache would save nothing here.
        wide = self.cache_dtype.itemsize > 1
        dtype = self.cache_dtype if wide else self.dtype
        fold = fold and self.param_dtype.name in self.tuning.fold_short_text
        return self.transformer.cross_kv(
            condition.text.vectors, dtype, self.cache_groups, fold=fold
        )

    def prefill(
        self,
        steps: jax.Array,
        cache: tuple[LayerCache, ...],
        cross_kv: tuple[Cross, ...] | None,
        condition: Condition,
    ) -> tuple[LayerCache, ...]:
        """Fills an empty cache with the prefix and the first steps in one pass.

        The known steps may be followed by padding: `decode` overwrites a slot before it attends to
        it.

        Args:
          steps: int32 `[B, K, S]`; S may be 0.
          cache: result of `init_cache`, at least prefix + S slots long.
          cross_kv: result of `cross_kv`.
          condition: B rows; text models accept fewer, see `Transformer`.

        Returns:
          The filled cache.
        """
        x, prefix_mask = self._with_prefix(self.emb(steps), condition)
        length = x.shape[1]
        x = x + self._positions(self._numbers(prefix_mask, condition))
        seen = jnp.tril(jnp.ones((1, length, length), bool)) & prefix_mask[:, None, :]
        seen = jnp.pad(seen, ((0, 0), (0, 0), (0, cache[0].k.shape[2] - length)))
        _, filled = self.transformer(x, seen, cross_kv, self._cross_mask(condition), cache)
        assert filled is not None
        return filled

    def decode(
        self,
        tokens: jax.Array,
        step: jax.Array | int,
        cache: tuple[LayerCache, ...],
        cross_kv: tuple[Cross, ...] | None,
        condition: Condition,
    ) -> tuple[jax.Array, tuple[LayerCache, ...]]:
        """Runs one step, using the cache of all earlier steps.

        Args:
          tokens: int32 `[B, K]`, the tokens of this step.
          step: number of this step, int32 `[B]`, or one number for all rows.
          cache: cache of the earlier steps.
          cross_kv: result of `cross_kv`.
          condition: the condition passed to `prefill`, the same at every step.

        Returns:
          float32 logits `[B, K, V]` that predict step + 1, and the cache including this step.
        """
        prefix_mask = self._prefix(condition)[1]  # [B or 1, P]
        step = jnp.broadcast_to(jnp.asarray(step, jnp.int32), tokens.shape[:1])
        slot = prefix_mask.shape[1] + step
        later = cache[0].k.shape[2] - prefix_mask.shape[1]
        seen = jnp.pad(prefix_mask, ((0, 0), (0, later)), constant_values=True)
        places = jnp.arange(cache[0].k.shape[2], dtype=jnp.int32)
        seen = seen & (places[None] <= slot[:, None])
        position = step[:, None]  # [B or 1, 1]
        if not self.config.chroma_stride:
            position = position + prefix_mask.sum(axis=1, keepdims=True, dtype=jnp.int32)
        x = self.emb(tokens[:, :, None]) + self._positions(position)  # [B, 1, D]
        x, new_cache = self.transformer(
            x, seen[:, None], cross_kv, self._cross_mask(condition), cache, slot
        )
        assert new_cache is not None
        return self.heads(self.out_norm(x))[:, :, 0], new_cache

    def prefix_length(self, condition: Condition) -> int:
        """P, the number of slots before step 0, including masked slots."""
        return self._prefix(condition)[1].shape[1]

    def _prefix(self, condition: Condition) -> tuple[jax.Array | None, jax.Array]:
        """The prefix of the tokens, `[B, P, D]` or None, and its mask, `[B or 1, P]`."""
        text = condition.text if self.config.conditioning == "prepend" else None
        parts = [part for part in (condition.audio, text) if part is not None]
        if not parts:
            return None, jnp.ones((1, 0), bool)
        vectors = [part.vectors.astype(self.dtype) for part in parts]
        return jnp.concatenate(vectors, 1), jnp.concatenate([part.mask for part in parts], 1)

    def _with_prefix(self, x: jax.Array, condition: Condition) -> tuple[jax.Array, jax.Array]:
        """Prepends the prefix to `[B, S, D]`; also returns the joint mask, `[B or 1, P + S]`."""
        prefix, mask = self._prefix(condition)
        mask = jnp.pad(mask, ((0, 0), (0, x.shape[1])), constant_values=True)
        return x if prefix is None else jnp.concatenate([prefix, x], axis=1), mask

    def _numbers(self, mask: jax.Array, condition: Condition) -> jax.Array:
        """The position numbers of the prefix and the tokens, int32 `[B or 1, P + S]`.

        In one row, they skip masked positions. By time, the tokens count from 0, a chroma frame has
        the number of the tokens that sound with it, and the text ends just before 0.
        """
        in_row = jnp.cumsum(mask, axis=1) - 1
        if not self.config.chroma_stride:
            return in_row
        frames = 0 if condition.audio is None else condition.audio.mask.shape[1]
        heard = jnp.arange(frames) * self.config.chroma_stride
        after = in_row[:, frames:] - mask[:, : self.prefix_length(condition)].sum(1, keepdims=True)
        heard = jnp.broadcast_to(heard, (mask.shape[0], frames))
        return jnp.concatenate([heard, after], axis=1)

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

    As in audiocraft (`LMModel.compute_predictions`), the sequence ends with the last frame of
    book 0. So a book with delay d has no prediction for its last d frames.

    Args:
      lm: the model.
      codes: int32 `[B, K, T]`.
      condition: the condition, B rows.

    Returns:
      float32 logits `[B, K, T, V]`, NaN where there is no prediction; and a mask, bool
      `[B, K, T]`, True where there is a prediction.
    """
    return predictions_of(lm, compute_hidden(lm, codes, condition))


def compute_hidden(lm: LM, codes: jax.Array, condition: Condition) -> jax.Array:
    """The input of the heads, `[B, T, D]`; at index t they predict frame t of codebook 0."""
    steps = patterns.to_steps(codes, lm.config.delays, lm.config.special_token)
    return lm.hidden(steps[:, :, : codes.shape[2]], condition)


def predictions_of(lm: LM, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The result of `compute_predictions`, computed from the result of `compute_hidden`."""
    delays, (batch, num_frames) = lm.config.delays, hidden.shape[:2]
    # Prediction s is for step s + 1; the last max(delays) steps have no prediction.
    around = ((0, 0), (0, 0), (1, max(delays)), (0, 0))
    logits = patterns.to_codes(jnp.pad(lm.heads(hidden), around, constant_values=jnp.nan), delays)
    predicted = np.arange(num_frames) + np.asarray(delays)[:, None] < num_frames  # [K, T]
    return logits, jnp.broadcast_to(predicted, (batch, *predicted.shape))
