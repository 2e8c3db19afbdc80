"""Generation: prefill, then one jitted loop over steps, whatever their number.

Shapes are rounded up to few lengths, so that one compilation serves many durations. What is drawn
depends on the seed and the index of the example alone: not on the batch, the chunks or the lengths.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from musicgen_jax.errors import UserError
from musicgen_jax.generation.sampling import Form, guide, sample
from musicgen_jax.generation.settings import DEFAULT_SAMPLING, Sampling
from musicgen_jax.nn import patterns
from musicgen_jax.nn.condition import Condition, Embedded, interleave, null_like
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.transformer import CrossCache, FoldedCross, LayerCache
from musicgen_jax.runtime import memory, sharding

UNKNOWN = -1  # a slot whose token is still to be drawn
# Steps a cache may hold; 1504 is 30 seconds. XLA's CPU compiler spreads attention over threads if
# each head's keys are more than 32,768 numbers: 512 steps of the official models are just not
# (`benchmarks/attention.py`).
_LENGTHS = (256, 528, 1024, 1504)
# A cache that grows begins with one of these where even that outweighs the model: to read what is
# not filled yet takes a CPU longer than to compile once more.
_BEGINNINGS = {"cpu": (64, 128), "default": ()}
_CALLBACK_STEPS = 10  # steps between two calls of the callback
# From this share of the model on, and so many bytes, a cache grows on the way. Each length is one
# more program to compile; a CPU pays less for that, and more for reading what is not filled yet.
_GROWN = {"cpu": (0.1, 1 << 28), "default": (1.0, 1 << 30)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Everything that changes from step to step."""

    step: jax.Array  # [] the last step that is complete; the next one is predicted from it
    steps: jax.Array  # [B, K, S] tokens; UNKNOWN where still to be drawn
    cache: tuple[LayerCache, ...]  # of B rows, with guidance 2 or 3 next to each other for each
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


def stream_codes(
    lm: LM,
    condition: Condition,
    *,
    num_frames: int,
    prompt: jax.Array | np.ndarray | None = None,
    keys: jax.Array,
    sampling: Sampling = DEFAULT_SAMPLING,
    callback: Callable[[int, int], None] | None = None,
    chunk: int = 0,
    reserve: int = 0,
    lengths: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """Generates codes, guided by a condition, perhaps continuing a prompt, and yields them.

    What is yielded, put together, depends on none of `chunk`, `reserve`, `lengths` and `callback`.

    Args:
      lm: the model.
      condition: B conditional rows; the null rows of guidance are made here. Without any
        condition in any row (masks all False, or no parts) the model runs unguided, which gives
        the same numbers for half the work.
      num_frames: T, the prompt included.
      prompt: int `[B, K, Tp]` with Tp < T, the beginning of the result.
      keys: B typed keys, see `example_keys`.
      sampling: how tokens are drawn.
      callback: called now and then with (steps done, steps to do), and once at the end.
      chunk: yield whenever so many more frames are complete in every book; 0 for all at the end.
      reserve: compile for at least so many frames, so that a short last window of a long piece
        shares the compilation of those before it.
      lengths: the slots that the cache has, one after the other, each compiled by itself; the last
        hold all steps. None for those of `growth`.

    Yields:
      int32 `[B, K, t]` on the host, one after the other the T frames, those of the prompt included.

    Raises:
      UserError: an argument is out of range, or shapes do not fit.
    """
    batch = len(keys)
    prompt = _check_prompt(prompt, batch, num_frames, lm)
    use_sampling, temperature, top_k = sampling.use_sampling, sampling.temperature, sampling.top_k
    top_p, cfg_coef, cfg_coef_beta = sampling.top_p, sampling.cfg_coef, sampling.cfg_coef_beta
    mesh = sharding.mesh_of(lm)
    condition, copies = _prepare(condition, lm, cfg_coef, cfg_coef_beta, mesh)

    steps = _initial_steps(prompt, num_frames, lm)  # [B, K, S]
    start, total = prompt.shape[2], steps.shape[2] - 1
    needed = max(total, reserve + max(lm.config.delays))
    lengths = [n for n in lengths or growth(lm, batch * copies, needed) if n > start]
    length, slots = lengths[-1], lengths.pop(0)
    steps = np.pad(
        steps,
        ((0, 0), (0, 0), (0, length + 1 - steps.shape[2])),
        constant_values=lm.config.special_token,
    )
    graphdef, params = nnx.split(lm, nnx.Param)
    first, keys = sharding.place_rows((steps[:, :, : slots + 1], keys), mesh)
    greedy = not use_sampling or temperature == 0
    form = Form(greedy=True) if greedy else Form(False, top_k, 0 < top_p < 1)
    beta = np.float32(cfg_coef_beta) if copies == 3 else None
    numbers = (np.float32(temperature), np.float32(top_p), np.float32(cfg_coef), beta)

    def begin(run: Any) -> Any:
        return run(
            graphdef,
            params,
            first,
            np.int32(start),
            keys,
            condition,
            prefill_length=min(_prefill_length(start), slots),
            cache_length=slots,
            copies=copies,
            mesh=mesh,
        )

    def advance(run: Any, state: Any, cross_kv: Any, count: int) -> Any:
        changing = (state, cross_kv, condition, np.int32(count))
        return run(graphdef, params, *changing, *numbers, form=form, mesh=mesh)

    if mesh is None:
        # Compiling takes memory of its own: before there is a cache, not beside it.
        begin(_start.lower).compile()
        state, cross_kv = _beside(params, begin(_start.eval_shape))
        advance(_decode.lower, state, cross_kv, 0).compile()
        memory.give_back()
    with memory.mapped():
        state, cross_kv = jax.block_until_ready(begin(_start))
    delay = max(lm.config.delays)
    chunk = chunk or total
    done, given = start, 0
    while done < total:
        if done == slots:
            more, slots = lengths[0] - slots, lengths.pop(0)
            with memory.mapped():
                state = _grow(state, steps[:, :, : slots + 1], more, mesh)
        due = max(given, start) + chunk + delay  # then a chunk is ready
        count = min(due - done, total - done, slots - done, _CALLBACK_STEPS if callback else total)
        state = advance(_decode, state, cross_kv, count)
        done += count
        if callback:
            state.step.block_until_ready()
            callback(done - start, total - start)
        ready = done - delay  # frames whose most delayed book is drawn too
        if done in (due, total):
            # All of it, cut on the host: a slice on the device compiles anew for each place.
            drawn = state.steps
            if mesh is not None:
                drawn = sharding.first_rows(drawn, mesh=mesh, batch=batch)
            drawn = np.asarray(drawn)[:, :, given : done + 1]
            if done == total:  # EnCodec is next
                del state, cross_kv
                memory.give_back()
            yield patterns.to_codes(drawn, lm.config.delays)
            given = ready


def generate_codes(lm: LM, condition: Condition, **settings) -> jax.Array:
    """What `stream_codes` yields, in one piece: int32 `[B, K, T]`.

    Args:
      lm: the model.
      condition: B conditional rows.
      **settings: the keyword arguments of `stream_codes`.
    """
    return jnp.asarray(np.concatenate(list(stream_codes(lm, condition, **settings)), axis=2))


@partial(jax.jit, static_argnames=("graphdef", "prefill_length", "cache_length", "copies", "mesh"))
def _start(
    graphdef,
    params,
    steps,
    start,
    keys,
    condition,
    *,
    prefill_length,
    cache_length,
    copies,
    mesh=None,
) -> tuple[DecodeState, tuple[CrossCache | FoldedCross, ...] | None]:
    """The state before step `start` is read, and what stays constant from there on."""
    lm: LM = nnx.merge(graphdef, params)
    constrain = partial(sharding.constrain_cache, mesh=mesh)
    # On several devices heads stay where their weights are.
    cross_kv = lm.cross_kv(condition, fold=mesh is None)
    if cross_kv is not None and mesh is not None:
        cross_kv = tuple(
            dataclasses.replace(kv, k=constrain(kv.k), v=constrain(kv.v)) for kv in cross_kv
        )
    prefix = lm.prefix_length(condition)
    cache = lm.init_cache(steps.shape[0] * copies, prefix + cache_length)
    if prefix + prefill_length:
        # Of the steps before `start` every token is known; what stands behind them is padding.
        known = jnp.maximum(steps[:, :, :prefill_length], 0)
        cache = lm.prefill(_rows(known, copies), cache, cross_kv, condition)
    return _stay(DecodeState(start, steps, cache, keys), mesh), cross_kv


@partial(jax.jit, static_argnames=("graphdef", "form", "mesh"), donate_argnames=("state",))
def _decode(
    graphdef,
    params,
    state,
    cross_kv,
    condition,
    count,
    temperature,
    top_p,
    cfg_coef,
    cfg_coef_beta,
    *,
    form,
    mesh=None,
) -> DecodeState:
    """Runs `count` steps."""
    lm: LM = nnx.merge(graphdef, params)
    copies = state.cache[0].k.shape[0] // state.steps.shape[0]

    def advance(_, state: DecodeState) -> DecodeState:
        tokens = _rows(_at(state.steps, state.step), copies)
        logits, cache = lm.decode(tokens, state.step, state.cache, cross_kv, condition)
        if copies > 1:
            sides = logits.reshape(-1, copies, *logits.shape[1:]).swapaxes(0, 1)
            logits = guide(sides, cfg_coef, cfg_coef_beta)[0]
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.step)
        # Each book may be drawn on a device of its own: only what is drawn is exchanged.
        drawn = sharding.constrain_rows(sample(logits, keys, form, temperature, top_p), mesh)
        # A delayed book's prompt ends later: what is known wins over what is drawn.
        known = _at(state.steps, state.step + 1)
        tokens = jnp.where(known == UNKNOWN, drawn, known)
        steps = lax.dynamic_update_index_in_dim(state.steps, tokens, state.step + 1, axis=2)
        return _stay(DecodeState(state.step + 1, steps, cache, state.keys), mesh)

    return lax.fori_loop(0, count, advance, state)


def _beside(params: Any, shapes: Any) -> Any:
    """Shapes of what is computed from parameters: on their device, if they are tied to one."""
    leaf = jax.tree.leaves(params)[0]
    if not (isinstance(leaf, jax.Array) and leaf.committed):
        return shapes
    there = partial(jax.ShapeDtypeStruct, sharding=leaf.sharding)
    return jax.tree.map(lambda x: there(x.shape, x.dtype), shapes)


def _grow(state: DecodeState, steps: np.ndarray, more: int, mesh: Mesh | None) -> DecodeState:
    """The state with room for `more` steps, `steps` being all that was known at the start.

    Keys and values are moved one layer at a time, and let go of where they were: there is never a
    second cache.
    """
    longer = partial(_longer, more=more, mesh=mesh)
    layers = []
    for layer in state.cache:
        layers.append(LayerCache(longer(layer.k), longer(layer.v)))
        layer.k.delete()
        layer.v.delete()
    filled = _filled(sharding.place_rows(steps, mesh), state.steps, mesh=mesh)
    return DecodeState(state.step, filled, tuple(layers), state.keys)


@partial(jax.jit, static_argnames=("more", "mesh"))
def _longer(x: jax.Array, *, more: int, mesh: Mesh | None) -> jax.Array:
    return sharding.constrain_cache(jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))), mesh)


@partial(jax.jit, static_argnames="mesh")
def _filled(steps: jax.Array, drawn: jax.Array, *, mesh: Mesh | None) -> jax.Array:
    return sharding.constrain_rows(lax.dynamic_update_slice(steps, drawn, (0, 0, 0)), mesh)


def _at(steps: jax.Array, step: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(steps, step, axis=2, keepdims=False)


def _rows(x: jax.Array, copies: int) -> jax.Array:
    """All rows of a guided example read the same tokens; see `interleave`."""
    return jnp.repeat(x, copies, axis=0)


def _stay(state: DecodeState, mesh: Mesh | None) -> DecodeState:
    """Of several devices each keeps its examples and heads."""
    steps, keys = sharding.constrain_rows((state.steps, state.keys), mesh)
    cache = sharding.constrain_cache(state.cache, mesh)
    return DecodeState(state.step, steps, cache, keys)


def _cache_length(steps: int) -> int:
    """The fewest slots we compile for that hold `steps`."""
    return next((n for n in _LENGTHS if n >= steps), -(-steps // 512) * 512)


def cache_lengths(steps: int) -> list[int]:
    """The slots that caches for up to so many steps are compiled with."""
    longest = _cache_length(steps)
    return [*(n for n in _LENGTHS if n < longest), longest]


def growth(lm: LM, rows: int, steps: int) -> list[int]:
    """The slots that a cache of so many rows has, one after the other, up to so many steps.

    They are one number, unless the cache outweighs the model: then it begins short and is
    lengthened on the way, so that less of it is read before it is filled.
    """
    lengths = cache_lengths(steps)
    if not outweighs(lm, rows, lengths[-1]):
        return lengths[-1:]
    beginnings = _BEGINNINGS.get(jax.default_backend(), _BEGINNINGS["default"])
    return [*(n for n in beginnings if n < lengths[0] and outweighs(lm, rows, n)), *lengths]


def outweighs(lm: LM, rows: int, slots: int) -> bool:
    """Whether such a cache is so large beside the model that it grows on the way."""
    share, least = _GROWN.get(jax.default_backend(), _GROWN["default"])
    size = memory.nbytes(jax.eval_shape(lambda lm: lm.init_cache(rows, slots), lm))
    return size > max(share * memory.nbytes(nnx.state(lm, nnx.Param)), least)


def _prefill_length(steps: int) -> int:
    """Steps rounded up to a power of two, from 256 on to multiples of 256."""
    if steps > 256:
        return -(-steps // 256) * 256
    return 1 << max(steps - 1, 15).bit_length() if steps else 0


def _initial_steps(prompt: np.ndarray, num_frames: int, lm: LM) -> np.ndarray:
    """`[B, K, S]`: the prompt laid out, UNKNOWN where a code is to come, else special."""
    missing = ((0, 0), (0, 0), (0, num_frames - prompt.shape[2]))
    codes = np.pad(prompt, missing, constant_values=UNKNOWN)
    return patterns.to_steps(codes, lm.config.delays, lm.config.special_token)


def _prepare(
    condition: Condition,
    lm: LM,
    cfg_coef: float,
    cfg_coef_beta: float | None,
    mesh: Mesh | None,
) -> tuple[Condition, int]:
    """The rows the model runs, and how many there are of each example.

    They are a conditional row; with guidance next to it a null row; with double guidance between
    these a row without text. With `lm.lean_cross` the condition has the first of these alone.
    """
    text_given, audio_given = (
        part is not None and bool(np.asarray(part.mask).any())
        for part in (condition.text, condition.audio)
    )
    given = text_given or audio_given
    prepend = lm.config.conditioning == "prepend"
    if cfg_coef_beta is not None and not prepend:
        raise UserError("cfg_coef_beta is for models that take a melody or a style, beside text")
    if not given and not prepend:
        return Condition(), 1
    # Without text in any row its pull is nothing, however strong.
    double = text_given and cfg_coef_beta is not None and cfg_coef_beta != 1
    copies = 1 if not given or (cfg_coef == 1 and not double) else 3 if double else 2
    condition = sharding.place_rows(_pad_text(condition), mesh)
    return _guided(lm, condition, copies=copies, mesh=mesh), copies


@partial(jax.jit, static_argnames=("copies", "mesh"))
def _guided(lm: LM, condition: Condition, *, copies: int, mesh: Mesh | None) -> Condition:
    """The rows of `_prepare`."""
    if lm.lean_cross:
        # A null row attends to nothing: it needs no row of the condition.
        return sharding.constrain_rows(condition, mesh)
    condition = lm.fill_nulls(condition)
    null = null_like(condition)
    if lm.config.conditioning == "prepend":
        # A null row takes up as many positions as the row next to it, as in audiocraft.
        null = lm.fill_nulls(Condition(_masked_like(null.text, condition.text), null.audio))
        null = Condition(null.text, _masked_like(null.audio, condition.audio))
    audio = Condition(_masked_like(null.text, condition.text), condition.audio)
    sides = {1: (condition,), 2: (condition, null), 3: (condition, audio, null)}[copies]
    return sharding.constrain_rows(interleave(*sides), mesh)


def _pad_text(condition: Condition) -> Condition:
    """Text padded to a multiple of 16, so that prompts of similar length share a compilation."""
    if condition.text is None:
        return condition
    pad = -condition.text.vectors.shape[1] % 16
    vectors = jnp.pad(condition.text.vectors, ((0, 0), (0, pad), (0, 0)))
    mask = jnp.pad(condition.text.mask, ((0, 0), (0, pad)))
    return Condition(Embedded(vectors, mask), condition.audio)


def _masked_like(part: Embedded | None, other: Embedded | None) -> Embedded | None:
    return None if part is None or other is None else Embedded(part.vectors, other.mask)


def _batch_size(condition: Condition, prompt, seed) -> int:
    for part in (condition.text, condition.audio):
        if part is not None:
            return part.vectors.shape[0]
    if prompt is not None:
        return prompt.shape[0]
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
