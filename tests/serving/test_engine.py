"""Slots: whatever the neighbours, the place and the time, a clip is the same bit for bit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax import testing
from musicgen_jax.conditioning.text import text_condition
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.generation.windows import Window
from musicgen_jax.runtime.compile_cache import counting
from musicgen_jax.serving.engine import Engine
from musicgen_jax.serving.shapes import shape_of

LM = dataclasses.replace(testing.DEBUG.lm, num_layers=1)
T5 = dataclasses.replace(testing.DEBUG.t5, num_layers=1)
MODEL = dataclasses.replace(testing.DEBUG, lm=LM, t5=T5)
SLOTS = 3
DTYPES = ("float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class Clip:
    """What a test asks for: a few values that fit into a dictionary."""

    text: str | None
    frames: int
    prompt: int  # frames, fewer than `frames`
    seed: int
    sampling: Sampling


def insert(engine: Engine, slot: int, clip: Clip) -> None:
    request = Request(
        config=MODEL,
        descriptions=[clip.text],
        duration=(clip.frames + 0.5) / MODEL.frame_rate,
        seed=clip.seed,
        sampling=clip.sampling,
    )
    prompt = np.random.default_rng(clip.seed).integers(0, LM.card, (1, LM.n_q, clip.prompt))
    window = Window(0, 0, clip.frames, clip.prompt)
    condition = text_condition(engine.parts, [clip.text])
    engine.insert(slot, engine.prepare(request, window, condition, prompt.astype(np.int32)))


def held(engine: Engine, slot: int) -> list[bytes]:
    """All bits of a finished slot: tokens, and keys and values, which show more than tokens do."""
    done = engine.done(slot)
    cache = [
        np.asarray(x)[2 * slot : 2 * slot + 2, :, :done]
        for layer in engine._state.cache
        for x in (layer.k, layer.v)
    ]
    return [x.tobytes() for x in (engine.read()[slot][:, : done + 1], *cache)]


@functools.cache
def engine(dtype: str) -> Engine:
    model = testing.random_model(MODEL, dtype=dtype)
    request = Request(config=MODEL, descriptions=["a"], duration=MODEL.max_duration)
    made = Engine(model.parts, slots=SLOTS, shape=shape_of(model.parts, request))
    made.warm_up()
    return made


@functools.cache
def alone(dtype: str, clip: Clip) -> list[bytes]:
    """The clip in slot 0, the others idle."""
    one = engine(dtype)
    for slot in range(SLOTS):
        one.free(slot)
    insert(one, 0, clip)
    while one.left[0]:
        one.run(int(one.left[0]))
    return held(one, 0)


samplings = st.builds(
    Sampling,
    use_sampling=st.booleans(),
    top_k=st.sampled_from((0, 1, 7, 250)),
    top_p=st.sampled_from((0.0, 0.5, 0.9, 1.0)),
    temperature=st.sampled_from((0.0, 0.7, 1.0, 1.5)),
    cfg_coef=st.sampled_from((1.0, 3.0, -2.0)),
)
clips = st.builds(
    lambda prompt, more, **rest: Clip(prompt=prompt, frames=prompt + more, **rest),
    text=st.sampled_from((None, "drums", "a calm waltz for solo piano")),
    prompt=st.sampled_from((0, 0, 1, 20, 70)),
    more=st.integers(1, 30),
    seed=st.sampled_from((0, 1, 2**32 - 1)),
    sampling=samplings,
)
# Arrivals in any slot, also in one that is taken: its tenant was cancelled.
events = st.lists(
    st.one_of(st.tuples(st.integers(0, SLOTS - 1), clips), st.integers(1, 25)), max_size=12
)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(events=events)
def test_a_clip_is_the_same_whoever_is_next_to_it(dtype, events):
    slots, tenants = engine(dtype), {}
    for event in [*events, MODEL.max_duration * 50]:
        if not isinstance(event, tuple):
            slots.run(int(event))
            continue
        slot, clip = event
        if slots.left[slot]:
            slots.free(slot)
        insert(slots, slot, clip)
        tenants[slot] = clip
    made = {slot: held(slots, slot) for slot in tenants}
    for slot, clip in tenants.items():
        assert made[slot] == alone(dtype, clip)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_harms_nobody(dtype):
    """Neither the neighbours nor the next tenant: 0 x NaN would be NaN."""
    slots = engine(dtype)
    clip = Clip("drums", 20, 5, 3, Sampling())
    expected = alone(dtype, clip)
    state = slots._state
    slots._state = dataclasses.replace(
        state, cache=jax.tree.map(lambda x: x.at[2:4].set(jnp.nan), state.cache)
    )
    insert(slots, 0, clip)
    slots.run(9)
    insert(slots, 1, clip)
    slots.run(40)
    assert held(slots, 0) == held(slots, 1) == expected


def test_nothing_compiles_any_more():
    slots = engine("float32")
    with counting() as counts:
        for frames, prompt in ((1, 0), (149, 0), (150, 149), (30, 7), (100, 80)):
            insert(slots, frames % SLOTS, Clip("a b c", frames, prompt, 2**31, Sampling()))
            slots.run(3)
    assert (counts.compiled, counts.loaded) == (0, 0)
