"""N slots in one compiled program: each holds a clip with its own age, length, seed and settings.

The program always runs all N rows, and its shapes never change. So a row's numbers cannot depend on
the contents of the other rows: a clip is the same bit for bit alone or among neighbours, in any
slot, and whenever it began. For the same reason, the stages that run once per clip (text encoder,
prefill, codec) run at batch 1.

    engine = Engine(parts, slots=4, shape=shape_of(parts, request))
    ready = engine.prepare(request, request.windows[0], condition)     any thread
    engine.insert(2, ready)                                            the thread of the device
    while engine.left[2]:
        engine.run(10)
    codes = engine.read()[2]                                           then slot 2 takes another
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from musicgen_jax.conditioning.text import text_condition
from musicgen_jax.errors import UserError
from musicgen_jax.generation.decode import example_keys, known_steps
from musicgen_jax.generation.guidance import guided
from musicgen_jax.generation.program import (
    Context,
    DecodeState,
    Requests,
    advance,
    context_of,
    start,
)
from musicgen_jax.generation.request import Request, window_frames
from musicgen_jax.generation.sampling import Mode, Numbers
from musicgen_jax.generation.settings import DEFAULT_SAMPLING, Sampling
from musicgen_jax.generation.warmup import text_of_length
from musicgen_jax.generation.windows import Window, window_keys
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM
from musicgen_jax.runtime import sharding
from musicgen_jax.serving.shapes import TEXT_TOKENS, Shape, audio_length, name_program
from musicgen_jax.storage.loading import Parts

_EVERY_SETTING = Mode(greedy=False, top_k=True, nucleus=True)
_PREFILLS = (64, *range(256, 1 << 14, 256))  # steps: few, since each is compiled beforehand


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """One window of one clip, ready for a slot: everything before the language model.

    Attributes:
      requests: one row.
      condition: the rows of guidance for it, padded to the engine's lengths.
      prefill: known steps to read at once, rounded up.
    """

    requests: Requests
    condition: Condition
    prefill: int = dataclasses.field(metadata={"static": True})


class Engine:
    """N slots of one model.

    Args:
      parts: of the model, with the adapters that all slots use.
      slots: N, from 1.
      shape: the lengths that everything is padded to.

    Attributes:
      parts: the model as the slots need it, see `parts_for_slots`. Conditions for `prepare` come
        from these.
      program: the name of the program, on which the result of a seed depends.
      left: int `[N]`, the steps that each slot still has to run.

    Raises:
      UserError: `slots` is out of range.
    """

    def __init__(self, parts: Parts, *, slots: int, shape: Shape):
        self.program = name_program(parts, slots, shape)
        self.parts, self.slots, self.shape = parts_for_slots(parts), slots, shape
        self.left = np.zeros(slots, int)
        self._limit, self._held = np.zeros(slots, int), np.zeros(slots, bool)
        # A request to a melody or style model may use double guidance.
        self._copies = 3 if parts.config.lm.hears else 2
        self._mesh = parts.mesh
        self._module = nnx.split(self.parts.lm, nnx.Param)
        null = guided(self.parts.lm, self._null(), copies=self._copies)
        self._state, self._context = _empty(
            *self._module,
            null,
            slots=slots,
            steps=shape.steps,
            copies=self._copies,
            mesh=self._mesh,
        )

    def prepare(
        self,
        request: Request,
        window: Window,
        condition: Condition,
        prompt: np.ndarray | None = None,
        sampling: Sampling | None = None,
    ) -> Prepared:
        """Everything that a window needs before its first step. Any thread may call this.

        Args:
          request: one clip.
          window: one of `request.windows`, no longer than `shape.steps`.
          condition: one row, computed with `parts`.
          prompt: int32 `[1, K, window.prompt]`, the beginning of the window.
          sampling: how tokens are drawn (default: `request.sampling`).

        Raises:
          UserError: the text or the style is longer than this engine takes.
        """
        lm = self.parts.lm
        if prompt is None:
            prompt = np.zeros((1, lm.config.n_q, 0), np.int32)
        start = prompt.shape[2]
        limit = window.length + max(lm.config.delays)
        requests = Requests(
            known_steps(prompt, window.length, self.shape.steps, lm),
            np.array([start], np.int32),
            np.array([limit], np.int32),
            window_keys(request.keys, window.number),
            Numbers.of([sampling or request.sampling]),
        )
        return Prepared(requests, self._guided(self._padded(condition)), self._prefill(start))

    def insert(self, slot: int, prepared: Prepared) -> None:
        """Puts a window into a slot, and replaces the slot's old content.

        Nothing of the old tenant stays: all its keys and values are overwritten, since even a
        masked one would matter if it were not finite.
        """
        requests = prepared.requests
        state, context = _begin(
            *self._module,
            sharding.place_rows(requests, self._mesh),
            prepared.condition,
            prefill=prepared.prefill,
            steps=self.shape.steps,
            copies=self._copies,
            mesh=self._mesh,
        )
        self._state, self._context = _insert(
            self._state, self._context, state, context, np.int32(slot), mesh=self._mesh
        )
        self._limit[slot], self._held[slot] = int(requests.limit[0]), False
        self.left[slot] = self._limit[slot] - int(requests.start[0])

    def change(self, slot: int, prepared: Prepared) -> None:
        """Gives the window in a slot another condition and other settings, from its next step on.

        The slot must run at once: otherwise it would repeat its last step under the new settings.
        """
        requests = dataclasses.replace(prepared.requests, steps=None)
        self._context = _change(
            *self._module,
            self._context,
            sharding.place_rows(requests, self._mesh),
            prepared.condition,
            np.int32(slot),
            mesh=self._mesh,
        )

    def hold(self, slot: int, held: bool) -> None:
        """Pauses a slot, or lets it continue."""
        if held != self._held[slot]:
            limit = self.done(slot) if held else self._limit[slot]
            self._context = _limited(
                self._context, np.int32(slot), np.int32(limit), mesh=self._mesh
            )
            self._held[slot] = held

    def run(self, count: int) -> None:
        """Runs steps of all slots; one that is done, held, or was never filled stays as it is."""
        self._state = _run(
            *self._module, self._state, self._context, np.int32(count), mesh=self._mesh
        )
        self.left = np.where(self._held, self.left, np.maximum(self.left - count, 0))

    def read(self) -> np.ndarray:
        """The steps of all slots on the host, int32 `[N, K, S + 1]`; see `done`."""
        if self._mesh is None:
            return np.asarray(self._state.steps)
        return np.asarray(sharding.first_rows(self._state.steps, mesh=self._mesh, batch=self.slots))

    def done(self, slot: int) -> int:
        """The last step of a slot that is complete."""
        return int(self._limit[slot] - self.left[slot])

    def free(self, slot: int) -> None:
        """Abandons a slot before its last step; its row keeps running until it is filled again."""
        self.left[slot] = 0

    def close(self) -> None:
        """Frees the memory of all slots; the engine cannot be used afterwards."""
        del self._state, self._context

    def warm_up(self) -> None:
        """Runs every program once, so that nothing compiles later. The slots must be free."""
        config = self.parts.config
        longest = min(window_frames(config), self.shape.steps - max(config.lm.delays))
        prompts = [0, *(n for n in _PREFILLS if n < longest), longest - 1]
        request = Request(config=config, descriptions=[None], duration=config.max_duration)
        longest_text = [text_of_length(self.parts, self.shape.text)]
        described = text_condition(self.parts, longest_text)
        if self.shape.negatives or not self.parts.lm.skip_null_rows:
            against = text_condition(self.parts, longest_text, longest_text)
            self.prepare(request, Window(0, 0, longest, 0), against)
        conditions = [text_condition(self.parts, [None]), *[described] * len(prompts)]
        for number, (frames, condition) in enumerate(zip([0, *prompts], conditions, strict=True)):
            window = Window(number, 0, longest, frames)
            prompt = np.zeros((1, config.lm.n_q, frames), np.int32) if frames else None
            prepared = self.prepare(request, window, condition, prompt)
            self.insert(0, prepared)
        self.change(0, prepared)
        self.hold(0, True)
        self.run(1)
        self.read()
        self.free(0)

    def _prefill(self, start: int) -> int:
        """The known steps, rounded up to a length that is compiled."""
        if not start:
            return 0
        return min(next(n for n in _PREFILLS if n >= start), self.shape.steps)

    def _guided(self, condition: Condition) -> Condition:
        condition = sharding.place_rows(condition, self._mesh)
        return guided(self.parts.lm, condition, copies=self._copies, mesh=self._mesh)

    def _null(self) -> Condition:
        """One row without a condition, in the shapes of all."""
        dim, dtype = self.parts.config.lm.dim, self.parts.lm.dtype

        def null(length: int) -> Embedded:
            vectors = np.zeros((1, length, dim), dtype)
            return Embedded(vectors, np.zeros((1, length), bool))  # type: ignore[arg-type]

        audio = audio_length(self.parts.config)
        return Condition(
            null(self.shape.text),
            null(audio) if audio else None,
            null(self.shape.text) if self.shape.negatives else None,
        )

    def _padded(self, condition: Condition) -> Condition:
        """One row in the shapes of all; missing parts become null."""

        def pad(part: Embedded | None, null: Embedded | None) -> Embedded | None:
            if part is None or null is None:
                return null
            after = null.mask.shape[1] - part.mask.shape[1]
            if after < 0:
                raise UserError(
                    f"the condition has {part.mask.shape[1]} vectors, and at most "
                    f"{null.mask.shape[1]} fit into a slot: take a shorter description or excerpt"
                )
            vectors = np.pad(np.asarray(part.vectors), ((0, 0), (0, after), (0, 0)))
            mask = np.pad(np.asarray(part.mask), ((0, 0), (0, after)))
            return Embedded(vectors, mask)  # type: ignore[arg-type]

        null = self._null()
        against = null.against
        if condition.against is not None:
            against = pad(condition.against, null.text)
        return Condition(pad(condition.text, null.text), pad(condition.audio, null.audio), against)


def parts_for_slots(parts: Parts) -> Parts:
    """The parts, with a language model whose texts are padded further, and never folded.

    Whether a text is folded depends on the size of the batch.
    """
    lm = nnx.merge(*nnx.split(parts.lm))  # the same arrays
    lm.tuning = dataclasses.replace(lm.tuning, shortest_text=TEXT_TOKENS, fold_short_text=())
    return dataclasses.replace(parts, lm=lm)


# --- Compiled functions ---------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("graphdef", "slots", "steps", "copies", "mesh"))
def _empty(
    graphdef,
    params,
    condition: Condition,
    *,
    slots: int,
    steps: int,
    copies: int,
    mesh: Mesh | None,
) -> tuple[DecodeState, Context]:
    """N slots that have never been filled; `condition` has the rows of one."""
    lm: LM = nnx.merge(graphdef, params)
    condition = jax.tree.map(lambda x: jnp.repeat(x, slots, axis=0), condition)
    tokens = jnp.full((slots, lm.config.n_q, steps + 1), lm.config.special_token, jnp.int32)
    state = DecodeState(
        jnp.zeros(slots, jnp.int32),
        tokens,
        lm.init_cache(slots * copies, lm.prefix_length(condition) + steps),
    )
    context = Context(
        jnp.ones(slots, jnp.int32),
        example_keys(0, slots),
        jax.tree.map(jnp.asarray, Numbers.of([DEFAULT_SAMPLING] * slots)),
        condition,
        lm.cross_kv(condition, fold=False),
    )
    return _placed(state, context, mesh)


@partial(jax.jit, static_argnames=("graphdef", "prefill", "steps", "copies", "mesh"))
def _begin(
    graphdef,
    params,
    requests: Requests,
    condition: Condition,
    *,
    prefill: int,
    steps: int,
    copies: int,
    mesh: Mesh | None,
) -> tuple[DecodeState, Context]:
    """A generation of one clip, for a slot to take over. From `cross` it has only keys and values.

    If there are no known steps to read, it has no cache: an empty one would be written twice.
    """
    lm: LM = nnx.merge(graphdef, params)
    state, context = start(
        lm, requests, condition, prefill_length=prefill, slots=steps, copies=copies, mesh=mesh
    )
    if not prefill + lm.prefix_length(condition):
        state = dataclasses.replace(state, cache=())
    # The weights in `cross` are shared by all slots: copying them would cost a tenth of their
    # memory.
    cross = context.cross and tuple((layer.k, layer.v) for layer in context.cross)
    return state, dataclasses.replace(context, cross=cross)  # type: ignore[arg-type]


@partial(jax.jit, static_argnames="mesh", donate_argnames=("state", "context"))
def _insert(
    state: DecodeState,
    context: Context,
    new_state: DecodeState,
    new_context: Context,
    slot: jax.Array,
    *,
    mesh: Mesh | None,
) -> tuple[DecodeState, Context]:
    """Writes a generation of one clip over a slot; one without a cache begins with zeros."""
    slots = state.step.shape[0]
    put = partial(_put, slot=slot, slots=slots)
    if not new_state.cache:
        rows = lambda x: jnp.zeros((x.shape[0] // slots, *x.shape[1:]), x.dtype)  # noqa: E731
        new_state = dataclasses.replace(new_state, cache=jax.tree.map(rows, state.cache))
    state = jax.tree.map(put, state, new_state)
    return _placed(state, _put_context(context, new_context, put), mesh)


@partial(jax.jit, static_argnames=("graphdef", "mesh"), donate_argnames="context")
def _change(
    graphdef,
    params,
    context: Context,
    requests: Requests,
    condition: Condition,
    slot: jax.Array,
    *,
    mesh: Mesh | None,
) -> Context:
    """Writes the context of one clip over that of a slot."""
    lm: LM = nnx.merge(graphdef, params)
    new = context_of(lm, requests, condition, mesh=mesh)
    cross = new.cross and tuple((layer.k, layer.v) for layer in new.cross)
    new = dataclasses.replace(new, cross=cross)  # type: ignore[arg-type]
    put = partial(_put, slot=slot, slots=context.limit.shape[0])
    return _placed_context(_put_context(context, new, put), mesh)


@partial(jax.jit, static_argnames="mesh", donate_argnames="context")
def _limited(context: Context, slot: jax.Array, limit: jax.Array, *, mesh: Mesh | None) -> Context:
    limits = context.limit.at[slot].set(limit)
    return _placed_context(dataclasses.replace(context, limit=limits), mesh)


def _put(old: jax.Array, new: jax.Array, *, slot: jax.Array, slots: int) -> jax.Array:
    """Writes the rows of one clip over those of a slot."""
    rows = old.shape[0] // slots  # on several devices there are copies of the new ones
    return lax.dynamic_update_slice_in_dim(old, new[:rows], slot * rows, axis=0)


def _put_context(
    context: Context, new_context: Context, put: Callable[[jax.Array, jax.Array], jax.Array]
) -> Context:
    """`put` for everything; of the cross-attention `new_context` has keys and values alone."""
    cross = None
    if context.cross is not None and new_context.cross is not None:
        cross = tuple(
            dataclasses.replace(old, k=put(old.k, k), v=put(old.v, v))  # type: ignore[type-var]
            for old, (k, v) in zip(context.cross, new_context.cross, strict=True)  # type: ignore[misc]
        )
    bare, new_bare = (dataclasses.replace(c, cross=None) for c in (context, new_context))
    return dataclasses.replace(jax.tree.map(put, bare, new_bare), cross=cross)


@partial(jax.jit, static_argnames=("graphdef", "mesh"), donate_argnames="state")
def _run(graphdef, params, state, context, count, *, mesh: Mesh | None) -> DecodeState:
    lm = nnx.merge(graphdef, params)
    return advance(lm, state, context, count, mode=_EVERY_SETTING, mesh=mesh)


def _placed(state: DecodeState, context: Context, mesh: Mesh | None) -> tuple[DecodeState, Context]:
    """Each of several devices keeps its rows and heads; a new tenant must not move any."""
    if mesh is None:
        return state, context
    rows = partial(sharding.constrain_rows, mesh=mesh)
    step, steps = rows((state.step, state.steps))
    state = DecodeState(step, steps, sharding.constrain_cache(state.cache, mesh))
    return state, _placed_context(context, mesh)


def _placed_context(context: Context, mesh: Mesh | None) -> Context:
    if mesh is None:
        return context
    bare = sharding.constrain_rows(dataclasses.replace(context, cross=None), mesh=mesh)
    cross = context.cross and tuple(
        dataclasses.replace(
            layer,  # type: ignore[type-var]
            k=sharding.constrain_cache(layer.k, mesh),
            v=sharding.constrain_cache(layer.v, mesh),
        )
        for layer in context.cross
    )
    return dataclasses.replace(bare, cross=cross)
