"""Changes while music plays: given in advance or by steering, the same tokens."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.conditioning.text import Texts
from musicgen_jax.errors import UserError
from musicgen_jax.generation.schedule import Cue, Scene, Timeline
from musicgen_jax.generation.settings import DEFAULT_SAMPLING
from musicgen_jax.generation.windows import Layout
from musicgen_jax.runtime.compile_cache import counting
from tests.helpers import shallow

SHORT = dataclasses.replace(shallow.TEXT, max_duration=1.0, name="short")
RATE = 50


@pytest.fixture(scope="module")
def model():
    return testing.random_model(SHORT)


def first_difference(a: np.ndarray, b: np.ndarray) -> int:
    """The first step at which codes differ: the first codebook has no delay."""
    delays = np.asarray(SHORT.lm.delays)
    different = (a != b).any(axis=0)  # [K, T]
    return int(
        min((row.argmax() + d for row, d in zip(different, delays, strict=True) if row.any()))
    )


def test_a_cue_takes_effect_at_its_frame(model):
    plain = model.generate(["calm piano"], duration=1.0, seed=3)
    same = model.generate([None], duration=1.0, seed=3, schedule=[(0.0, "calm piano")])
    np.testing.assert_array_equal(same.codes, plain.codes)
    changed = model.generate(
        ["calm piano"], duration=1.0, seed=3, schedule=[(0.3, "drums"), Cue(0.5, temperature=0.5)]
    )
    assert 15 <= first_difference(changed.codes, plain.codes) < 25
    assert [cue.seconds for cue in changed.schedule] == [0.3, 0.5]
    other = model.generate(["calm piano"], duration=1.0, seed=3, schedule=[(0.3, "drums")])
    assert first_difference(changed.codes, other.codes) >= 25


def test_steering_is_a_schedule(model):
    """In several windows, with guidance that begins later and a negative description."""
    settings = {"duration": 2.5, "seed": 5, "chunk_seconds": 0.2, "join": "crossfade"}
    with model.stream(["calm piano"], **settings) as session:
        heard = [next(session)]
        assert session.steer(description="drums", temperature=0.7) > 0.2
        heard += [next(session), next(session)]
        session.steer(negative_description="noise", cfg_coef=2.0)
        heard += [next(session) for _ in range(3)]
        session.steer(cfg_coef=4.0)
        session.steer(description="")
        heard += list(session)
    assert len(session.schedule) == 3, "two cues at one frame are one"
    whole = model.generate(["calm piano"], **settings, schedule=session.schedule)
    np.testing.assert_array_equal(np.concatenate(heard, axis=2), whole.audio)
    assert whole.schedule == session.schedule
    with pytest.raises(UserError, match="nothing left to change"):
        session.steer(temperature=1.0)


def test_music_that_begins_unguided_and_is_guided_later(model):
    for first in ({"descriptions": [None]}, {"descriptions": ["a"], "cfg_coef": 1}):
        session = model.stream(**first, duration=1.5, chunk_seconds=0.2)
        heard = [next(session), next(session)]
        session.steer(description="drums", cfg_coef=3.0)
        heard += list(session)
        settings = {"duration": 1.5, "chunk_seconds": 0.2}
        again = list(model.stream(**first, **settings, schedule=session.schedule))
        np.testing.assert_array_equal(np.concatenate(heard, 2), np.concatenate(again, 2))


def test_a_second_change_compiles_nothing(model):
    session = model.stream(["calm piano"], duration=1.0, chunk_seconds=0.1, seed=1)
    next(session)
    session.steer(description="drums")
    next(session)
    with counting() as counts:
        session.steer(description="bells", temperature=0.5, cfg_coef=2.0)
        next(session)
        next(session)
    session.close()
    assert (counts.compiled, counts.loaded) == (0, 0)


def test_endless_music_takes_no_more_memory(model):
    def held() -> int:
        return sum(array.nbytes for array in jax.live_arrays())

    with model.stream(["calm piano"], duration=None, chunk_seconds=0.2) as session:
        seen = [(next(session).shape[2], held())[1] for _ in range(60)]
        first = session.steer(description="drums")
        assert 12.0 <= first < 13.0
        next(session)
    assert max(seen[40:]) <= max(seen[:20])
    assert list(session) == []
    end = model.stream(["calm piano"], duration=12.0, chunk_seconds=0.2)
    begun = model.stream(["calm piano"], duration=None, chunk_seconds=0.2)
    for _ in range(8):
        np.testing.assert_array_equal(next(end), next(begun))


def test_the_windows_of_endless_music():
    layout = Layout(1 << 60, window=50, stride=30, prompt=45, overlap=8)
    assert layout[:3] == Layout(130, window=50, stride=30, prompt=45, overlap=8)[:3]
    far = layout[10**9]
    assert (far.start, far.length, far.overlap) == (30 * 10**9, 50, 8)
    assert layout.drawn_from(45) == layout[0]
    assert layout.drawn_from(46) == layout[2]  # the second's new frames begin with an overlap


def test_where_the_text_stands_in_front_it_counts_from_the_next_window(caplog):
    melody = dataclasses.replace(shallow.MELODY, max_duration=1.0)
    model = testing.random_model(melody)
    wav = np.sin(np.arange(8000) / 7)[None].astype(np.float32)
    settings = {"duration": 1.5, "seed": 2}

    def make(*schedule):
        return model.generate_with_chroma(["a"], wav, 4000, **settings, schedule=schedule)

    with caplog.at_level(logging.WARNING, logger="musicgen_jax"):
        made = make(Cue(0.4, description="drums", temperature=0.5))
    assert "takes effect with the next window, at 1 s" in caplog.text
    assert [cue.fields() for cue in made.schedule] == [
        {"seconds": 0.4, "temperature": 0.5},
        {"seconds": 1.0, "prompt": "drums"},
    ]
    np.testing.assert_array_equal(make(*made.schedule).codes, made.codes)
    np.testing.assert_array_equal(
        make(Cue(0.4, temperature=0.5)).codes[..., :50], made.codes[..., :50]
    )
    with pytest.raises(UserError, match="this is the last window"):
        make((1.2, "drums"))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("drums", "schedule must be a list"),
        ([(1.0, "a"), (0.5, "b")], "in order: 0.5 s comes after 1 s"),
        ([(0.5, "a"), (0.5, "b")], "in order"),
        ([(9.0, "a")], "after the end of the music"),
        ([(-1.0, "a")], "a number from 0"),
        ([(float("nan"), "a")], "a number from 0"),
        ([("0", "a")], "a number from 0"),
        ([(0.5, None)], "must be a text"),
        ([(0.5,)], "schedule must be a list"),
        ([(i / 1e6, "a") for i in range(1001)], "at most 1000"),
    ],
)
def test_schedules_that_are_refused(model, schedule, message):
    with pytest.raises(UserError, match=message):
        model.generate(["x"], duration=1.2, schedule=schedule)


@pytest.mark.parametrize("seconds", [1e307, 1e308, 10**308])
def test_seconds_beyond_every_frame_are_refused(model, seconds):
    for duration in (1.0, None):
        with pytest.raises(UserError, match="comes after the end"):
            model.stream(["x"], duration=duration, schedule=[(seconds, "a")])


def test_a_long_schedule_takes_no_longer_for_each_cue(monkeypatch):
    """A server reads them while everybody else waits."""
    made, changed = [], Scene.changed
    monkeypatch.setattr(Scene, "changed", lambda *args: made.append(args) or changed(*args))
    schedule = [Cue(n * 0.02, f"{n}") for n in range(1000)]
    scene = Scene(Texts(("a",)), DEFAULT_SAMPLING)
    timeline = Timeline(scene, schedule, frame_rate=50, total=1 << 20)
    assert len(made) == len(schedule)
    assert [timeline.at(n).texts.descriptions[0] for n in (0, 7, 999, 5000)] == [
        "0",
        "7",
        "999",
        "999",
    ]
    timeline.add(Cue(0.0, temperature=0.5), 400)  # in the middle: those after it change too
    assert timeline.at(399).sampling == DEFAULT_SAMPLING
    assert timeline.at(400).texts.descriptions == ("400",)
    assert {timeline.at(n).sampling.temperature for n in (400, 401, 999)} == {0.5}
    assert timeline.scenes[0] == scene
    assert len(timeline.scenes) == 1001


def test_cues_that_are_refused(model, tmp_path):
    for wrong, message in (
        ({}, "must change something"),
        ({"temperature": -1}, "temperature must be"),
        ({"cfg_coef": "3"}, "cfg_coef must be"),
        ({"description": 3}, "must be a text"),
    ):
        with pytest.raises(UserError, match=message):
            Cue(0.0, **wrong)
    with pytest.raises(UserError, match="cfg_coef 1 means no guidance"):
        model.generate(["x"], schedule=[Cue(0.5, negative_description="a", cfg_coef=1)])
    with pytest.raises(UserError, match="duration must be a number"):
        model.generate(["x"], duration=None)
    with pytest.raises(UserError, match="progress is for music with an end"):
        model.stream(["x"], duration=None, progress=True)
    with pytest.raises(UserError, match="checkpoint is for a piece with an end"):
        model.stream(["x"], duration=None, checkpoint=tmp_path / "a")
    kept = model.stream(["x"], duration=1.0, checkpoint=tmp_path / "b")
    with pytest.raises(UserError, match="cannot be steered"):
        kept.steer(temperature=0.5)
