"""The compiled programs of generation: start, advance, grow.

Every row of a batch is a generation of its own: it has its own step, its own last step and its own
settings. Rows of different ages can share a program.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from musicgen_jax.generation.guidance import guided
from musicgen_jax.generation.sampling import Mode, Numbers, guide, sample
from musicgen_jax.nn.condition import Condition
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.transformer import Cross, LayerCache
from musicgen_jax.runtime import memory, sharding

UNKNOWN = -1  # a slot whose token is still to be drawn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Requests:
    """The requests of B rows."""

    steps: Any  # int32 [B, K, S + 1] tokens; UNKNOWN where still to be drawn
    start: Any  # int32 [B] the last step that is known whole
    limit: Any  # int32 [B] the last step that is wanted: S at most
    keys: jax.Array  # [B] one typed key per row
    numbers: Numbers  # of B rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Everything that changes from step to step."""

    step: jax.Array  # int32 [B] the last step that is complete; the next one is predicted from it
    steps: jax.Array  # int32 [B, K, S + 1] as in `Requests`
    cache: tuple[LayerCache, ...]  # with guidance 2 or 3 rows next to each other for each row


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Everything that stays the same from step to step."""

    limit: jax.Array  # int32 [B] the last step that is wanted
    keys: jax.Array  # [B]
    numbers: Numbers
    condition: Condition
    cross: tuple[Cross, ...] | None  # one per layer


def start(
    lm: LM,
    requests: Requests,
    condition: Condition,
    *,
    prefill_length: int,
    slots: int,
    copies: int,
    mesh: Mesh | None = None,
) -> tuple[DecodeState, Context]:
    """The state and the constants with which a generation begins.

    Args:
      lm: the model.
      requests: B rows, S = `slots`.
      condition: from `guidance.guided`.
      prefill_length: steps that are read at once, at least as many as any row's `start`.
      slots: length of the cache, in steps.
      copies: rows that the model runs for each of B.
      mesh: the mesh that holds the weights, if there are several devices.
    """
    context = context_of(lm, requests, condition, mesh=mesh)
    prefix = lm.prefix_length(condition)
    cache = lm.init_cache(requests.steps.shape[0] * copies, prefix + slots)
    if prefix + prefill_length:
        # Before `start` every token is known; after it there is padding.
        known = jnp.maximum(requests.steps[:, :, :prefill_length], 0)
        cache = lm.prefill(_repeat_rows(known, copies), cache, context.cross, condition)
    state = DecodeState(jnp.asarray(requests.start), jnp.asarray(requests.steps), cache)
    return _constrain(state, mesh), context


def context_of(
    lm: LM, requests: Requests, condition: Condition, *, mesh: Mesh | None = None
) -> Context:
    """The part that stays the same from step to step; the arguments are those of `start`."""
    # On several devices heads stay where their weights are.
    cross = lm.cross_kv(condition, fold=mesh is None)
    if cross is not None and mesh is not None:
        constrain = partial(sharding.constrain_cache, mesh=mesh)
        cross = tuple(
            dataclasses.replace(c, k=constrain(c.k), v=constrain(c.v))  # type: ignore[type-var]
            for c in cross
        )
    return Context(requests.limit, requests.keys, requests.numbers, condition, cross)


def advance(
    lm: LM, state: DecodeState, context: Context, count: jax.Array, *, mode: Mode, mesh=None
) -> DecodeState:
    """Runs `count` steps of every row; a row that reaches its limit stays as it is."""
    copies = state.cache[0].k.shape[0] // state.steps.shape[0]

    def one_step(_, state: DecodeState) -> DecodeState:
        # A finished row repeats its last step, which changes nothing.
        step = jnp.minimum(state.step, context.limit - 1)
        tokens = _repeat_rows(_tokens_at(state.steps, step), copies)
        logits, cache = lm.decode(
            tokens, _repeat_rows(step, copies), state.cache, context.cross, context.condition
        )
        sides = logits.reshape(-1, copies, *logits.shape[1:]).swapaxes(0, 1)
        logits = guide(sides, context.numbers)
        keys = jax.vmap(jax.random.fold_in)(context.keys, step)
        # Each codebook may be drawn on a device of its own: only tokens are exchanged.
        drawn = sharding.constrain_rows(sample(logits, keys, context.numbers, mode), mesh)
        # The prompt of a delayed codebook ends later: a known token replaces the drawn one.
        known = _tokens_at(state.steps, step + 1)
        tokens = jnp.where(known == UNKNOWN, drawn, known)
        steps = _with_tokens(state.steps, tokens, step + 1)
        return _constrain(DecodeState(step + 1, steps, cache), mesh)

    return lax.fori_loop(jnp.int32(0), count, one_step, state)


@partial(jax.jit, static_argnames=("graphdef", "prefill_length", "slots", "copies", "mesh"))
def _start(graphdef, params, requests, condition, **static) -> tuple[DecodeState, Context]:
    return start(nnx.merge(graphdef, params), requests, condition, **static)


@partial(jax.jit, static_argnames=("graphdef", "mesh"))
def _context(graphdef, params, requests, condition, **static) -> Context:
    return context_of(nnx.merge(graphdef, params), requests, condition, **static)


@partial(jax.jit, static_argnames=("graphdef", "mode", "mesh"), donate_argnames=("state",))
def _advance(graphdef, params, state, context, count, **static) -> DecodeState:
    return advance(nnx.merge(graphdef, params), state, context, count, **static)


class Program:
    """The programs of one batch.

    Args:
      lm: the model.
      condition: B rows.
      copies: rows that the model runs for each of them, see `guidance.copies_of`.
      mode: parts of the sampler.

    Attributes:
      copies: as given.
    """

    def __init__(self, lm: LM, condition: Condition, copies: int, mode: Mode):
        self.mesh = sharding.mesh_of(lm)
        self._module = nnx.split(lm, nnx.Param)  # graphdef and parameters
        condition = sharding.place_rows(condition, self.mesh)
        self._condition = guided(lm, condition, copies=copies, mesh=self.mesh)
        self.copies, self._mode = copies, mode

    def start(
        self, requests: Requests, prefill_length: int, slots: int
    ) -> tuple[DecodeState, Context]:
        """See `start`; both programs are compiled first, if they are not compiled yet."""
        requests = sharding.place_rows(requests, self.mesh)
        arguments = (*self._module, requests, self._condition)
        static = {"prefill_length": prefill_length, "slots": slots}
        static |= {"copies": self.copies, "mesh": self.mesh}
        if self.mesh is None:
            # Compiling takes memory of its own: it comes before the cache.
            _start.lower(*arguments, **static).compile()
            shapes = _placed_like(self._module[1], _start.eval_shape(*arguments, **static))
            _advance.lower(*self._module, *shapes, np.int32(0), **self._decoding).compile()
            memory.give_back()
        with memory.mapped():
            return jax.block_until_ready(_start(*arguments, **static))

    def context(self, requests: Requests) -> Context:
        """What `start` gives next to the state, for a state that has begun; without `steps`."""
        requests = sharding.place_rows(requests, self.mesh)
        return _context(*self._module, requests, self._condition, mesh=self.mesh)

    def advance(self, state: DecodeState, context: Context, count: int) -> DecodeState:
        """Runs `count` steps; the old state cannot be used afterwards."""
        return _advance(*self._module, state, context, np.int32(count), **self._decoding)

    def grow(self, state: DecodeState, steps: np.ndarray, slots: int) -> DecodeState:
        """The state with a longer cache; `steps` are those of `Requests` in the new length.

        Keys and values move one layer at a time, and the old ones are deleted: there is never a
        second cache.
        """
        more = slots + 1 - state.steps.shape[2]
        layers = []
        with memory.mapped():
            for layer in state.cache:
                k, v = (_pad_cache(x, more=more, mesh=self.mesh) for x in (layer.k, layer.v))
                layers.append(LayerCache(k, v))
                layer.k.delete()
                layer.v.delete()
            steps = sharding.place_rows(steps, self.mesh)
            filled = _refill_steps(steps, state.steps, mesh=self.mesh)
        return DecodeState(state.step, filled, tuple(layers))

    def read(self, state: DecodeState, batch: int) -> np.ndarray:
        """The steps of all `batch` rows on the host, int32 `[B, K, S + 1]`.

        Cutting them on the device would take a compilation for each length.
        """
        if self.mesh is None:
            return np.asarray(state.steps)
        return np.asarray(sharding.first_rows(state.steps, mesh=self.mesh, batch=batch))

    @property
    def _decoding(self) -> dict[str, Any]:
        return {"mode": self._mode, "mesh": self.mesh}


@partial(jax.jit, static_argnames=("more", "mesh"))
def _pad_cache(x: jax.Array, *, more: int, mesh: Mesh | None) -> jax.Array:
    return sharding.constrain_cache(jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))), mesh)


@partial(jax.jit, static_argnames="mesh")
def _refill_steps(steps: jax.Array, drawn: jax.Array, *, mesh: Mesh | None) -> jax.Array:
    return sharding.constrain_rows(lax.dynamic_update_slice(steps, drawn, (0, 0, 0)), mesh)


def _placed_like(params: Any, shapes: Any) -> Any:
    """Shapes on the device of the parameters, if these are tied to one."""
    leaf = jax.tree.leaves(params)[0]
    if not (isinstance(leaf, jax.Array) and leaf.committed):
        return shapes
    place = partial(jax.ShapeDtypeStruct, sharding=leaf.sharding)
    return jax.tree.map(lambda x: place(x.shape, x.dtype), shapes)


def _tokens_at(steps: jax.Array, step: jax.Array) -> jax.Array:
    """`[B, K]` at each row's step."""
    return jnp.take_along_axis(steps, step[:, None, None], axis=2)[..., 0]


def _with_tokens(steps: jax.Array, tokens: jax.Array, step: jax.Array) -> jax.Array:
    """The steps with `[B, K]` tokens at each row's step."""
    here = jnp.arange(steps.shape[2], dtype=step.dtype)[None, None] == step[:, None, None]
    return jnp.where(here, tokens[..., None], steps)


def _repeat_rows(x: jax.Array, copies: int) -> jax.Array:
    """All rows of an example read the same tokens; see `nn.condition.interleave`."""
    return jnp.repeat(x, copies, axis=0)


def _constrain(state: DecodeState, mesh: Mesh | None) -> DecodeState:
    """Each of several devices keeps its rows and heads."""
    step, steps = sharding.constrain_rows((state.step, state.steps), mesh)
    return DecodeState(step, steps, sharding.constrain_cache(state.cache, mesh))
