"""Changes of music in slots: at a known step, the same bit for bit whoever is next to it."""

import dataclasses
import itertools
import time

import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.errors import UserError
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.schedule import Cue
from musicgen_jax.serving.engine import Engine
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers import shallow

SHORT = dataclasses.replace(shallow.TEXT, max_duration=1.0, name="short")


@pytest.fixture(scope="module")
def model():
    return testing.random_model(SHORT, dtype="int8")


def test_steering_in_slots_is_a_schedule_next_to_others(model):
    def request(text, **more):
        return Request(config=SHORT, descriptions=[text], **more)

    with Scheduler(model.parts, slots=2, negatives=True, warm=False) as scheduler:
        asked = request("a", duration=40.0, seed=3)
        ticket = scheduler.submit(asked)
        other = scheduler.submit(request("b", duration=3.0, seed=4))
        blocks = iter(ticket)
        next(blocks)
        first = ticket.steer(Cue(0.0, "drums", temperature=0.8)).result(60)
        next(blocks)
        assert ticket.steer(Cue(0.0, cfg_coef=2.0)).result(60) >= first > 0
        with pytest.raises(UserError, match="began without a negative description"):
            ticket.steer(Cue(0.0, negative_description="noise"))
        with pytest.raises(UserError, match="more than 64 tokens"):
            ticket.steer(Cue(0.0, " ".join(f"w{i}" for i in range(80))))
        made, schedule = ticket.result(), ticket.schedule
        with pytest.raises(UserError, match="nothing left to change"):
            ticket.steer(Cue(0.0, "late")).result(60)
        assert schedule[0].seconds == first
        again = scheduler.submit(dataclasses.replace(asked, schedule=schedule)).result()
        np.testing.assert_array_equal(again.codes, made.codes)
        np.testing.assert_array_equal(again.audio, made.audio)
        assert again.schedule == schedule
        alone = scheduler.submit(request("b", duration=3.0, seed=4)).result()
        np.testing.assert_array_equal(other.result().codes, alone.codes)


def test_a_schedule_with_a_negative_text_in_slots(model):
    floats = testing.random_model(SHORT)
    schedule = [(0.2, "drums"), Cue(0.5, negative_description="noise"), (1.3, "bells")]
    settings = {"duration": 1.6, "seed": 2, "schedule": schedule}
    made = floats.generate(["a"], **settings, slots=2)
    expected = floats.generate(["a"], **settings)
    np.testing.assert_array_equal(made.codes, expected.codes)
    assert made.schedule == expected.schedule
    assert "text=2x64" in str(made.program)


def test_music_that_waits_for_its_listener_can_be_steered(model):
    """Whoever steers may be who does not listen meanwhile."""
    endless = Request(config=SHORT, descriptions=["a"], duration=None)
    with Scheduler(model.parts, slots=1, warm=False) as scheduler:
        ticket = scheduler.submit(endless, ahead=lambda: 9.0)
        while not ticket.steps[0]:
            time.sleep(0.01)
        # It has begun, and is held for ever.
        first = ticket.steer(Cue(0.0, "drums")).result(60)
        assert ticket.steer(Cue(0.0, temperature=0.5)).result(60) == first > 0
        assert len(ticket.schedule) == 1


def test_music_that_waits_is_the_same(model, monkeypatch):
    """A slot is never held where its window begins: that step was read at once."""
    begun, held = {}, []
    insert, hold = Engine.insert, Engine.hold

    def inserted(engine, slot, prepared):
        insert(engine, slot, prepared)
        begun[slot] = engine.done(slot)

    def noted(engine, slot, on):
        if on:
            held.append(engine.done(slot) - begun[slot])
        hold(engine, slot, on)

    monkeypatch.setattr(Engine, "insert", inserted)
    monkeypatch.setattr(Engine, "hold", noted)
    ahead = itertools.cycle([9.0, 0.0])
    codes = []
    with Scheduler(model.parts, slots=1, warm=False) as scheduler:
        ticket = scheduler.submit(
            Request(config=SHORT, descriptions=["a"], duration=None, seed=3),
            on_audio=codes.append,
            ahead=lambda: next(ahead),
        )
        while sum(block.shape[1] for block in codes) < 5 * SHORT.sample_rate:
            time.sleep(0.01)
        ticket.cancel()
        whole = Request(config=SHORT, descriptions=["a"], duration=20.0, seed=3)
        expected = scheduler.submit(whole).result().audio[0]
    assert min(held) > 0
    heard = np.concatenate(codes, axis=1)[:, : 5 * SHORT.sample_rate]
    np.testing.assert_array_equal(heard, expected[:, : heard.shape[1]])


def test_endless_music_in_a_slot_waits_for_its_listener(model):
    with model.stream(["a"], duration=None, slots=1, chunk_seconds=0.5) as session:
        heard = [next(session) for _ in range(3)]
        seconds = sum(chunk.shape[2] for chunk in heard) / SHORT.sample_rate
        # So many in hand, one window at most in the codec, and what this thread may wait for.
        assert seconds < session.steer(description="drums") < seconds + 60.0
        while (seconds := sum(chunk.shape[2] for chunk in heard) / SHORT.sample_rate) < 20.0:
            heard.append(next(session))
            assert heard[-1].shape[2] % 2000 == 0
    assert [cue.description for cue in session.schedule] == ["drums"]


@pytest.mark.parametrize("slots", [None, 1])
def test_finished_music_cannot_be_steered(model, slots):
    session = model.stream(["a"], duration=0.5, slots=slots)
    for _ in session:
        pass
    with pytest.raises(UserError, match="the music is finished: there is nothing left to change"):
        session.steer(description="b")


def test_a_session_in_slots_can_be_steered_while_nobody_listens(model):
    with model.stream(["a"], duration=None, slots=1, chunk_seconds=0.5) as session:
        next(session)
        time.sleep(2.0)  # whether it waits for its listener by then or not
        assert 0 < session.steer(description="drums") < 60.0
