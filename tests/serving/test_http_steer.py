"""Negative descriptions and schedules over HTTP."""

import io
import json

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax import testing
from musicgen_jax.audio.files import to_int16
from musicgen_jax.audio.level import apply_level
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers.http_server import GENERATE, SMALL, Server, serving

pytestmark = pytest.mark.extra


@pytest.fixture(scope="module")
def model():
    return testing.random_model(SMALL)


@pytest.fixture(scope="module")
def server(model):
    with (
        Scheduler(model.parts, slots=2, negatives=True, warm=False) as scheduler,
        serving(scheduler) as server,
    ):
        yield server


def same(answer, audio: np.ndarray) -> None:
    """An answer in wav has these samples, float32 [W]."""
    assert answer.status == 200, answer.body
    sent = soundfile.read(io.BytesIO(answer.body), dtype="int16")[0]
    np.testing.assert_array_equal(sent, to_int16(apply_level(audio[None], "clip", 0.0))[0])


def comment(answer) -> dict:
    with soundfile.SoundFile(io.BytesIO(answer.body)) as file:
        return json.loads(file.comment)


def test_a_negative_prompt(server: Server, model):
    body = {"prompt": "a waltz", "duration": 0.5, "seed": 4}
    made = {"seed": 4, "duration": 0.5, "slots": 2}
    against = model.generate(["a waltz"], **made, negative_descriptions=["noise"])
    for name in ("negative_prompt", "negative_description"):
        answer = server.post(GENERATE, {**body, name: "noise"})
        same(answer, against.audio[0, 0])
        assert answer.headers["x-program"] == str(against.program)
        assert comment(answer)["negative_prompt"] == "noise"
        assert "noise" not in answer.headers["x-settings"]
    plain = model.generate(["a waltz"], **made)
    for nothing in ("", None, " "):
        answer = server.post(GENERATE, {**body, "negative_prompt": nothing})
        same(answer, plain.audio[0, 0])
        assert "negative_prompt" not in comment(answer)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"negative_prompt": 3}, "negative_prompt"),
        ({"negative_prompt": "x" * 2001}, "negative_prompt"),
        ({"negative_description": "a\x00b"}, "negative_description"),
        ({"negative_prompt": "a", "negative_description": "a"}, "negative_description"),
        ({"negative_prompt": "a", "guidance_scale": 1}, "guidance_scale"),
    ],
)
def test_refusals(server: Server, body, param):
    answer = server.post(GENERATE, {"prompt": "x", "duration": 0.5, **body})
    assert answer.status == 400
    assert answer.error["param"] == param
