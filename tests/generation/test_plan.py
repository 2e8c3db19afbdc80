"""The plan of a generation: integers alone, no model."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_jax.generation.plan import (
    Advance,
    Emit,
    Grow,
    Plan,
    cache_lengths,
    growth,
    prefill_length,
)
from musicgen_jax.runtime.tuning import CPU, GPU, TPU, Tuning

SHORT = Tuning(cache_lengths=(8, 16, 24, 40), first_cache_lengths=(2, 4))


@st.composite
def plans(draw) -> Plan:
    frames, delay = draw(st.integers(1, 60)), draw(st.integers(0, 5))
    prompt = draw(st.integers(0, frames - 1))
    total = frames + delay
    shorter = draw(st.sets(st.integers(1, total), max_size=4))
    slots = (*sorted(shorter - {total}), total + draw(st.integers(0, 9)))
    return Plan(frames, prompt, delay, slots, draw(st.integers(0, 70)), draw(st.integers(0, 12)))


@given(plans())
def test_every_step_runs_once_and_every_frame_comes_once(plan):
    step, slots, emitted = plan.prompt, plan.lengths()[0], 0
    for event in plan.events():
        match event:
            case Advance(count):
                assert count >= 1
                assert not plan.pause or count <= plan.pause
                step += count
                assert step <= slots  # there is room for what is written
            case Grow(longer):
                assert longer > slots == step  # as late as can be
                slots = longer
            case Emit(start, stop):
                assert start == emitted
                assert stop == step + 1  # nothing that is not drawn yet
                emitted = stop - 1 - plan.delay
                assert emitted > start
    assert step == plan.total
    assert emitted == plan.num_frames
    assert isinstance(event, Emit)


@given(plans())
def test_a_chunk_comes_as_soon_as_it_is_complete(plan):
    emits = [event for event in plan.events() if isinstance(event, Emit)]
    new = [e.stop - 1 - plan.delay - max(e.start, plan.prompt) for e in emits]
    if not plan.chunk:
        assert len(new) == 1
    else:
        assert set(new[:-1]) <= {plan.chunk}
        assert 0 < new[-1] <= plan.chunk


@given(plans(), st.integers(1, 9))
def test_pauses_move_no_other_event(plan, pause):
    def others(plan):
        step, found = plan.prompt, []
        for event in plan.events():
            if isinstance(event, Advance):
                step += event.count
            else:
                found.append((step, event))
        return found

    assert others(plan) == others(dataclasses.replace(plan, pause=pause))


def test_a_plan_as_an_example():
    plan = Plan(num_frames=10, prompt=2, delay=3, slots=(2, 8, 16), chunk=4, pause=5)
    assert list(plan.events()) == [
        Advance(5), Advance(1), Grow(16), Advance(1), Emit(0, 10), Advance(4), Emit(6, 14),
    ]  # fmt: skip


@given(st.integers(1, 5000), st.sampled_from([CPU, GPU, TPU, SHORT]))
def test_lengths_are_few_and_sufficient(steps, tuned):
    lengths = cache_lengths(steps, tuned)
    assert lengths[-1] >= steps
    assert all(a < b for a, b in itertools.pairwise(lengths))
    assert all(n in tuned.cache_lengths for n in lengths[:-1])
    assert lengths[-1] in tuned.cache_lengths or lengths[-1] % 512 == 0
    assert len(lengths) == 1 or lengths[-2] < steps  # no longer than needed


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [
        (100, (256,)),
        (300, (256, 528)),
        (1503, (256, 528, 1024, 1504)),
        (1600, (256, 528, 1024, 1504, 2048)),
    ],
)  # fmt: skip
def test_lengths_by_example(steps, lengths):
    assert cache_lengths(steps, CPU) == lengths


@pytest.mark.parametrize(
    ("step_bytes", "lengths"),
    [
        (1, (24,)),
        (100, (24,)),
        (101, (8, 16, 24)),
        (500, (8, 16, 24)),
        (700, (4, 8, 16, 24)),
        (1300, (2, 4, 8, 16, 24)),
    ],
)  # fmt: skip
def test_a_cache_grows_if_it_is_large_next_to_the_model(step_bytes, lengths):
    by_share = dataclasses.replace(SHORT, grow_cache_above=(0.5, 0))
    assert growth(20, step_bytes, 4800, by_share) == lengths
    by_bytes = dataclasses.replace(SHORT, grow_cache_above=(0.0, 2400))
    assert growth(20, step_bytes, 4800, by_bytes) == lengths


@given(st.integers(1, 1500))
def test_prefills_are_few_and_sufficient(steps):
    assert steps <= prefill_length(steps) < max(2 * steps, 17, steps + 256)


def test_prefills_are_few():
    assert prefill_length(0) == 0
    # 16 to 256 doubling, then five more.
    assert len({prefill_length(n) for n in range(1, 1501)}) == 10
