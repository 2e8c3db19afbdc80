"""Generation: prefill, then one jitted loop over steps, whatever their number.

Shapes are rounded up to few lengths, so that one compilation serves many durations. What is drawn
depends on the seed and the index of the example alone: not on the batch, the chunks or the lengths.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from musicgen_jax import patterns
from musicgen_jax.conditioning.condition import Condition, concat_batch, null_like
from musicgen_jax.errors import UserError
from musicgen_jax.lm import LM
from musicgen_jax.sampling import Form, guide, sample
from musicgen_jax.transformer import CrossCache, LayerCache

_UNKNOWN = -1  # a slot whose token is still to be drawn
_LENGTHS = (256, 512, 1024, 1504)  # steps a cache may hold; 1504 is 30 seconds
_CALLBACK_STEPS = 10  # steps between two calls of the callback


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Everything that changes from step to step."""

    step: jax.Array  # [] the last step that is complete; the next one is predicted from it
    steps: jax.Array  # [B, K, S] tokens; _UNKNOWN where still to be drawn
    cache: tuple[LayerCache, ...]  # of B rows, or 2B with guidance
    keys: jax.Array  # [B] one typed key per example


def example_keys(seed: int | Sequence[int], batch: int) -> jax.Array:
    """B typed keys: example i of `seed`, or example 0 of each of B seeds."""
    if isinstance(seed, int | np.integer):
        pairs = [(int(seed), i) for i in range(batch)]
    else:
        pairs = [(int(s), 0) for s in seed]
    # The algorithm is named, so that no global setting changes what a seed stands for.
    key = partial(jax.random.key, impl="threefry2x32")
    return jnp.stack([jax.random.fold_in(key(s), i) for s, i in pairs])


def generate_codes(
    lm: LM,
    condition: Condition,
    *,
    num_frames: int,
    prompt: jax.Array | np.ndarray | None = None,
    seed: int | Sequence[int] | jax.Array = 0,
    use_sampling: bool = True,
    temperature: float = 1.0,
    top_k: int = 250,
    top_p: float = 0.0,
    cfg_coef: float = 3.0,
    callback: Callable[[int, int], None] | None = None,
) -> jax.Array:
    """Generates codes, guided by a condition, perhaps continuing a prompt.

    Args:
      lm: the model.
      condition: B conditional rows; the null rows of guidance are made here. Without any
        condition in any row (masks all False, or no parts) the model runs unguided, which gives
        the same numbers for half the work.
      num_frames: T, the prompt included.
      prompt: int `[B, K, Tp]` with Tp < T, the beginning of the result.
      seed: an int; or B of them, which gives each row what its seed gives alone; or B typed keys
        (see `example_keys`).
      use_sampling: False takes the likeliest token at every step.
      temperature: 0 is the same as `use_sampling=False`.
      top_k: draw from the k likeliest tokens; 0 for all of them.
      top_p: then from the likeliest that hold this mass; 0 (or 1) for all of them. Unlike in
        audiocraft both filters combine.
      cfg_coef: strength of the guidance; 1 for none.
      callback: called now and then with (steps done, steps to do), and once at the end.

    Returns:
      int32 `[B, K, T]`.

    Raises:
      UserError: an argument is out of range, or shapes do not fit.
    """
    batch = _batch_size(condition, prompt, seed)
    _check_numbers(num_frames, temperature, top_k, top_p)
    prompt = _check_prompt(prompt, batch, num_frames, lm)
    keys = seed if isinstance(seed, jax.Array) else example_keys(seed, batch)
    if len(keys) != batch:
        raise UserError(f"{len(keys)} seeds for a batch of {batch}: give one, or one per example")
    condition, guided = _prepare(condition, lm, cfg_coef)

    steps = _initial_steps(prompt, num_frames, lm)  # [B, K, S]
    start, total = prompt.shape[2], steps.shape[2] - 1
    length = _cache_length(total)
    steps = np.pad(
        steps,
        ((0, 0), (0, 0), (0, length + 1 - steps.shape[2])),
        constant_values=lm.config.special_token,
    )
    graphdef, params = nnx.split(lm, nnx.Param)
    state, cross_kv = _start(
        graphdef,
        params,
        steps,
        np.int32(start),
        keys,
        condition,
        prefill_length=min(_prefill_length(start), length),
        cache_length=length,
        guided=guided,
    )
    greedy = not use_sampling or temperature == 0
    form = Form(greedy=True) if greedy else Form(False, top_k, 0 < top_p < 1)
    done, chunk = start, _CALLBACK_STEPS if callback else total
    while done < total:
        count = min(chunk, total - done)
        state = _decode(
            graphdef,
            params,
            state,
            cross_kv,
            condition,
            np.int32(count),
            np.float32(temperature),
            np.float32(top_p),
            np.float32(cfg_coef),
            form=form,
        )
        done += count
        if callback:
            state.step.block_until_ready()
            callback(done - start, total - start)
    steps = np.asarray(state.steps)[:, :, : total + 1]
    return jnp.asarray(patterns.to_codes(steps, lm.config.delays))


@partial(jax.jit, static_argnames=("graphdef", "prefill_length", "cache_length", "guided"))
def _start(
    graphdef, params, steps, start, keys, condition, *, prefill_length, cache_length, guided
) -> tuple[DecodeState, tuple[CrossCache, ...] | None]:
    """The state before step `start` is read, and what stays constant from there on."""
    lm: LM = nnx.merge(graphdef, params)
    cross_kv = lm.cross_kv(condition)
    prefix = lm.prefix_length(condition)
    cache = lm.init_cache(steps.shape[0] * (1 + guided), prefix + cache_length)
    if prefix + prefill_length:
        # Of the steps before `start` every token is known; what stands behind them is padding.
        known = jnp.maximum(steps[:, :, :prefill_length], 0)
        cache = lm.prefill(_rows(known, guided), cache, cross_kv, condition)
    return DecodeState(start, steps, cache, keys), cross_kv


@partial(jax.jit, static_argnames=("graphdef", "form"), donate_argnames=("state",))
def _decode(
    graphdef, params, state, cross_kv, condition, count, temperature, top_p, cfg_coef, *, form
) -> DecodeState:
    """Runs `count` steps."""
    lm: LM = nnx.merge(graphdef, params)
    guided = state.cache[0].k.shape[0] > state.steps.shape[0]

    def advance(_, state: DecodeState) -> DecodeState:
        tokens = _rows(_at(state.steps, state.step), guided)
        logits, cache = lm.decode(tokens, state.step, state.cache, cross_kv, condition)
        logits = guide(logits, cfg_coef) if guided else logits
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.step)
        drawn = sample(logits, keys, form, temperature, top_p)
        # A delayed book's prompt ends later: what is known wins over what is drawn.
        known = _at(state.steps, state.step + 1)
        tokens = jnp.where(known == _UNKNOWN, drawn, known)
        steps = lax.dynamic_update_index_in_dim(state.steps, tokens, state.step + 1, axis=2)
        return DecodeState(state.step + 1, steps, cache, state.keys)

    return lax.fori_loop(0, count, advance, state)


def _at(steps: jax.Array, step: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(steps, step, axis=2, keepdims=False)


def _rows(x: jax.Array, guided: bool) -> jax.Array:
    """Both halves of a guided batch read the same tokens."""
    return jnp.concatenate([x, x]) if guided else x


def _cache_length(steps: int) -> int:
    """The fewest slots we compile for that hold `steps`."""
    return next((n for n in _LENGTHS if n >= steps), -(-steps // 512) * 512)


def _prefill_length(steps: int) -> int:
    """Steps rounded up to a power of two, from 256 on to multiples of 256."""
    if steps > 256:
        return -(-steps // 256) * 256
    return 1 << max(steps - 1, 15).bit_length() if steps else 0


def _initial_steps(prompt: np.ndarray, num_frames: int, lm: LM) -> np.ndarray:
    """`[B, K, S]`: the prompt laid out, _UNKNOWN where a code is to come, else special."""
    missing = ((0, 0), (0, 0), (0, num_frames - prompt.shape[2]))
    codes = np.pad(prompt, missing, constant_values=_UNKNOWN)
    return patterns.to_steps(codes, lm.config.delays, lm.config.special_token)


def _prepare(condition: Condition, lm: LM, cfg_coef: float) -> tuple[Condition, bool]:
    """The rows the model runs, and whether they are conditional rows, then null rows."""
    masks = (condition.cross_mask, condition.prefix_mask)
    given = any(mask is not None and bool(np.asarray(mask).any()) for mask in masks)
    prepend = lm.config.conditioning == "prepend"
    if not given and not prepend:
        return Condition(), False
    condition = _pad_text(condition, prepend)
    guided = given and cfg_coef != 1
    if not guided:
        return condition, False
    null = null_like(condition)
    if prepend:
        # audiocraft's null row of a prefix is zeros that are attended and take up positions.
        null = dataclasses.replace(
            null, cross_mask=condition.cross_mask, prefix_mask=condition.prefix_mask
        )
    return concat_batch(condition, null), True


def _pad_text(condition: Condition, prepend: bool) -> Condition:
    """Text padded to a multiple of 16, so that prompts of similar length share a compilation."""
    if condition.cross is None or condition.cross_mask is None:
        return condition
    pad = -condition.cross.shape[1] % 16
    cross = jnp.pad(condition.cross, ((0, 0), (0, pad), (0, 0)))
    mask = jnp.pad(condition.cross_mask, ((0, 0), (0, pad)))
    if prepend:
        # No text is one zero vector in front: audiocraft tokenizes it to a lone, masked </s>.
        empty = ~mask.any(axis=1, keepdims=True)
        cross = jnp.where(empty[..., None], 0, cross)
        mask = mask | (empty & (jnp.arange(mask.shape[1]) == 0))
    return dataclasses.replace(condition, cross=cross, cross_mask=mask)


def _batch_size(condition: Condition, prompt, seed) -> int:
    for part in (condition.cross, condition.prefix, prompt):
        if part is not None:
            return part.shape[0]
    return 1 if isinstance(seed, int | np.integer) else len(seed)


def _check_numbers(num_frames: int, temperature: float, top_k: int, top_p: float) -> None:
    if num_frames < 1:
        raise UserError(f"num_frames must be at least 1, got {num_frames}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 (greedy) or a positive number, got {temperature}")
    if top_k < 0:
        raise UserError(f"top_k must be 0 (off) or more, got {top_k}")
    if not 0 <= top_p <= 1:
        raise UserError(f"top_p must lie between 0 (off) and 1, got {top_p}")


def _check_prompt(prompt, batch: int, num_frames: int, lm: LM) -> np.ndarray:
    books = lm.config.n_q
    if prompt is None:
        return np.zeros((batch, books, 0), np.int32)
    prompt = np.asarray(prompt, np.int32)
    if prompt.ndim != 3 or prompt.shape[:2] != (batch, books):
        raise UserError(
            f"the prompt must be [{batch}, {books}, frames] (batch, codebooks), got {prompt.shape}"
        )
    if prompt.shape[2] >= num_frames:
        raise UserError(
            f"the prompt has {prompt.shape[2]} frames: num_frames must be larger, got {num_frames}"
        )
    if prompt.size and not 0 <= prompt.min() <= prompt.max() < lm.config.card:
        raise UserError(
            f"prompt codes must lie in 0..{lm.config.card - 1}, got {prompt.min()}..{prompt.max()}"
        )
    return prompt
