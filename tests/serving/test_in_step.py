"""Clips that are made in step are those of a scheduler, bit for bit."""

import dataclasses

import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.errors import UserError
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.schedule import Cue
from musicgen_jax.model import MusicGen
from musicgen_jax.serving import in_step
from musicgen_jax.serving.scheduler import scheduler_for
from tests.helpers import shallow

MODEL = shallow.TEXT


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return testing.random_model(MODEL)


def ask(text: str | None, seed: int, seconds: float, **more) -> Request:
    return Request(config=MODEL, descriptions=[text], duration=seconds, seed=seed, **more)


CLIPS = [
    ask("a calm waltz", 7, 1.0),
    ask(" ".join(["bells"] * 80), 1, 0.5),  # of another shape
    ask("drums", 3, 7.0, join="crossfade"),  # four windows
    ask(None, 2**32 - 1, 0.3),
    ask("harp", 3, 1.0, schedule=[Cue(0.4, description="drums")]),
]


def test_the_clips_are_those_of_a_scheduler(model):
    with scheduler_for(model.parts, CLIPS, slots=2, queue=len(CLIPS)) as scheduler:
        expected = [ticket.result() for ticket in [scheduler.submit(clip) for clip in CLIPS]]
    made = dict(in_step.make_clips(model.parts, CLIPS, slots=2))
    assert sorted(made) == list(range(len(CLIPS)))
    for i, clip in enumerate(expected):
        np.testing.assert_array_equal(made[i].codes, clip.codes)
        np.testing.assert_array_equal(made[i].audio, clip.audio)
        assert dataclasses.replace(made[i], codes=0, audio=0) == dataclasses.replace(
            clip, codes=0, audio=0
        )


@pytest.mark.parametrize(
    ("clips", "slots", "message"),
    [
        (CLIPS, 0, "slots must be an integer"),
        ([Request(config=MODEL, descriptions=["a", "b"], duration=1.0)], 2, "a slot takes one"),
    ],
)
def test_refused_before_the_first_clip(model, clips, slots, message):
    with pytest.raises(UserError, match=message):
        in_step.make_clips(model.parts, clips, slots=slots)
