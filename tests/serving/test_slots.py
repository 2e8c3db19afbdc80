"""`slots=N` of the library: the samples that a server of N slots sends."""

import dataclasses

import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.errors import UserError
from musicgen_jax.generation.request import Request
from musicgen_jax.runtime import sharding
from musicgen_jax.serving.scheduler import Scheduler

LM = dataclasses.replace(testing.DEBUG.lm, num_layers=1)
T5 = dataclasses.replace(testing.DEBUG.t5, num_layers=1)
MODEL = dataclasses.replace(testing.DEBUG, lm=LM, t5=T5)
TEXTS = ["a calm waltz", None, "drums and a long long long text that others lack"]


@pytest.fixture(scope="module")
def model():
    return testing.random_model(MODEL, dtype="int8")


def test_a_clip_is_what_the_server_sends(model):
    together = model.generate(TEXTS, seed=[7, 8, 9], duration=1.0, slots=2)
    with Scheduler(model.parts, slots=2, warm=False) as scheduler:
        for i, text in enumerate(TEXTS):
            request = Request(config=MODEL, descriptions=[text], duration=1.0, seed=7 + i)
            sent = scheduler.submit(request).result()
            np.testing.assert_array_equal(sent.codes[0], together.codes[i])
            np.testing.assert_array_equal(sent.audio[0], together.audio[i])
            assert sent.program == together.program


def test_the_clips_of_one_seed_are_those_of_generate(model):
    """Each has its own key, and continues its own prompt."""
    floats = testing.random_model(MODEL)
    prompt = np.arange(3 * 4 * 20).reshape(3, 4, 20) % 37
    settings = {"seed": 5, "duration": 1.0, "prompt_codes": prompt}
    made = floats.generate(TEXTS, **settings, slots=2)
    expected = floats.generate(TEXTS, **settings)
    np.testing.assert_array_equal(made.codes, expected.codes)
    assert made.program != expected.program
    assert str(expected.program).startswith("batch=3 steps=256 text=16")


def test_streams_and_checkpoints(model, tmp_path):
    settings = {"seed": 5, "duration": 7.0, "join": "crossfade", "slots": 3}
    whole = model.generate(TEXTS[:2], **settings)
    chunks = list(model.stream(TEXTS[:2], **settings, chunk_seconds=0.7))
    assert {chunk.shape for chunk in chunks[:-1]} == {(2, 1, 2800)}
    np.testing.assert_array_equal(np.concatenate(chunks, 2), whole.audio)

    def stop(audio):
        raise KeyboardInterrupt

    again = settings | {"checkpoint": tmp_path / "part"}
    with pytest.raises(KeyboardInterrupt):
        model.generate(TEXTS[:2], **again, on_audio=stop)
    seen = []
    resumed = model.generate(TEXTS[:2], **again, progress=lambda *steps: seen.append(steps))
    np.testing.assert_array_equal(resumed.audio, whole.audio)
    assert seen[-1] == (2 * sum((150, 83, 83, 83, 83)),) * 2 or seen[-1][0] == seen[-1][1]
    with pytest.raises(UserError, match="it was started with program"):
        model.generate(TEXTS[:2], **(again | {"slots": 2}))


def test_a_melody_and_a_style_in_slots():
    melody = np.sin(np.arange(8000) / 7)[None].astype(np.float32)
    wild = np.random.default_rng(0).standard_normal((1, 8000), np.float32)
    for config, method in (
        (testing.DEBUG_MELODY, "generate_with_chroma"),
        (testing.DEBUG_STYLE, "generate_with_style"),
    ):
        model = testing.random_model(config)
        settings = {"seed": [1, 2], "duration": 0.8, "cfg_coef_beta": 2.0}
        if config is testing.DEBUG_STYLE:
            settings["excerpt_length"] = 1.0
        make = getattr(model, method)
        expected = make(["a", None], [melody, wild], 4000, **settings)
        made = make(["a", None], [melody, wild], 4000, **settings, slots=2)
        np.testing.assert_array_equal(made.codes, expected.codes)
        one = make([None], wild, 4000, **(settings | {"seed": 2}), slots=2)
        np.testing.assert_array_equal(one.audio[0], made.audio[1])
        plain = model.generate(["a"], seed=3, duration=0.5)
        slotted = model.generate(["a"], seed=3, duration=0.5, slots=2)
        np.testing.assert_array_equal(slotted.codes, plain.codes)


def test_slots_on_several_devices():
    alone = testing.random_model(MODEL).generate(TEXTS, seed=4, duration=0.5)
    model = testing.random_model(MODEL, mesh=sharding.make_mesh(data=2, model=2))
    made = model.generate(TEXTS, seed=4, duration=0.5, slots=2)
    np.testing.assert_array_equal(made.codes, alone.codes)
    assert "device=cpu:2x2" in str(made.program)
    with pytest.raises(UserError, match="slots must be a multiple of 2"):
        model.generate(TEXTS, slots=3)


def test_a_long_description_takes_a_program_of_its_own(model):
    long = " ".join(f"word{i}" for i in range(80))
    both = model.generate([long, "a"], seed=[1, 2], duration=0.5, slots=2)
    assert "text=128" in str(both.program)
    for i, text in enumerate([long, "a"]):
        alone = model.generate([text], seed=1 + i, duration=0.5, slots=2)
        np.testing.assert_array_equal(alone.audio[0], both.audio[i])
    assert "text=64" in str(alone.program)
