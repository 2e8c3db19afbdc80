"""Negative descriptions and schedules over HTTP."""

import asyncio
import io
import json

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax import testing
from musicgen_jax.audio.files import to_int16
from musicgen_jax.audio.level import apply_level
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.schedule import Cue
from musicgen_jax.serving.http import asked as asks
from musicgen_jax.serving.http.errors import ClientGone
from musicgen_jax.serving.http.listener import Listener
from musicgen_jax.serving.http.pace import Pace
from musicgen_jax.serving.http.settings import Settings
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers.http_server import GENERATE, JOBS, SMALL, Server, serving, wait_until


@pytest.fixture(scope="module")
def model():
    return testing.random_model(SMALL)


@pytest.fixture(scope="module")
def server(model):
    with (
        Scheduler(model.parts, slots=2, negatives=True, warm=False) as scheduler,
        serving(scheduler, max_duration=60.0) as server,
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


def test_a_schedule(server: Server, model):
    body = {"prompt": "a waltz", "duration": 1, "seed": 4}
    cues = [[0.2, "drums"], {"seconds": 0.5, "guidance_scale": 2, "temperature": 0.5}]
    answer = server.post(GENERATE, {**body, "schedule": cues})
    schedule = [(0.2, "drums"), Cue(0.5, cfg_coef=2, temperature=0.5)]
    made = model.generate(["a waltz"], seed=4, duration=1, slots=2, schedule=schedule)
    same(answer, made.audio[0, 0])
    assert comment(answer)["schedule"] == [
        {"seconds": 0.2, "prompt": "drums"},
        {"seconds": 0.5, "cfg_coef": 2, "temperature": 0.5},
    ]


def stream(server: Server, body: dict):
    connection = server.connect()
    connection.request("POST", GENERATE, json.dumps(body), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def test_a_stream_is_steered(server: Server, model):
    """Its schedule, sent in advance, is the same music; afterwards it cannot be changed."""
    body = {"prompt": "a waltz", "duration": 30, "seed": 4, "stream": True}
    connection, answer = stream(server, body)
    place = f"/v1/audio/streams/{answer.headers['X-Stream-Id']}/steer"
    steered = server.post(place, {"prompt": "drums", "temperature": 0.5})
    assert steered.status == 200, steered.body
    said = steered.json
    assert said["frame"] == round(said["seconds"] * SMALL.frame_rate) > 0
    assert said["schedule"] == [{"seconds": said["seconds"], "prompt": "drums", "temperature": 0.5}]
    for wrong, param in (
        ({}, None), ({"seed": 3}, "seed"), ({"temperature": -1}, "temperature"),
        ({"prompt": "a\x00"}, "prompt"), ({"negative_prompt": "noise"}, None),
    ):  # fmt: skip
        refused = server.post(place, wrong)
        assert (refused.status, refused.error["param"]) == (400, param)
    heard = answer.read()
    connection.close()
    again = server.post(GENERATE, {**body, "stream": False, "schedule": said["schedule"]})
    np.testing.assert_array_equal(
        np.frombuffer(heard[-60_000:], "<i2"), np.frombuffer(again.body[-60_000:], "<i2")
    )
    wait_until(lambda: server.service.pace.open == 0)
    assert server.post(place, {"prompt": "late"}).error["code"] == "stream_not_found"
    assert server.post("/v1/audio/streams/x/steer", {"prompt": "a"}).status == 404


def test_endless_music_is_sent_at_the_pace_of_listening(server: Server):
    body = {"prompt": "a", "endless": True, "stream": True, "response_format": "pcm"}
    connection, answer = stream(server, body)
    assert len(answer.read(8000)) == 8000
    place = f"/v1/audio/streams/{answer.headers['X-Stream-Id']}/steer"
    said = server.post(place, {"prompt": "drums"}).json
    assert said["seconds"] < 60
    connection.close()
    wait_until(lambda: server.service.scheduler.busy == 0)


def test_the_settings_of_endless_music_make_endless_music():
    body = {"prompt": "x", "endless": True, "stream": True, "seed": 3}
    settings = asks.GENERATE.read(body, SMALL, Settings("debug")).settings()
    again = {**settings, "prompt": "x", "stream": True}
    assert asks.GENERATE.read(again, SMALL, Settings("debug")).settings() == settings
    assert settings["endless"]
    finite = asks.GENERATE.read({"prompt": "x"}, SMALL, Settings("debug")).settings()
    assert "endless" not in finite


def test_whoever_leaves_endless_music_frees_the_slot_at_once(server: Server):
    """Not when the next part is to be sent, which may be seconds later."""

    async def leave() -> None:
        request = Request(config=SMALL, descriptions=["a"], duration=None)
        ticket = server.service.scheduler.submit(request, ahead=lambda: 9.0)
        gone = asyncio.Event()

        async def receive() -> dict:
            await gone.wait()
            return {"type": "http.disconnect"}

        async with Listener(ticket, receive) as listener:
            while not ticket.steps[0]:
                await asyncio.sleep(0.01)
            assert not ticket.done
            gone.set()
            while not ticket.done:  # although nobody asks for the next block
                await asyncio.sleep(0.01)
            with pytest.raises(ClientGone):
                await anext(listener.blocks())

    asyncio.run(asyncio.wait_for(leave(), 60))


def test_endless_music_that_did_not_begin_is_no_finished_music(server: Server):
    ticket = server.service.scheduler.submit(
        Request(config=SMALL, descriptions=["a"], duration=None)
    )
    ticket.cancel()
    pace = Pace(2)
    pace.add(ticket)
    pace.observe()
    assert pace.seconds == 0


def test_the_comment_of_a_steered_job_makes_it_again(server: Server):
    body = {"prompt": "a", "duration": 60, "seed": 5}
    job = server.post(JOBS, body).json["id"]
    steered = server.post(f"{JOBS}/{job}/steer", {"prompt": "drums"})
    assert steered.status == 200, steered.body
    wait_until(lambda: server.ask("GET", f"{JOBS}/{job}").json["status"] == "completed", 120)
    audio = server.ask("GET", f"{JOBS}/{job}/audio")
    schedule = comment(audio)["schedule"]
    assert schedule == steered.json["schedule"]
    again = server.post(GENERATE, {**body, "schedule": schedule})
    assert again.body == audio.body


def test_a_job_is_steered(server: Server):
    job = server.post(JOBS, {"prompt": "a", "duration": 60}).json["id"]
    assert server.post(f"{JOBS}/{job}/steer", {"cfg_coef": 2}).status in (200, 202)
    server.ask("DELETE", f"{JOBS}/{job}")
    assert server.post(f"{JOBS}/{job}/steer", {"cfg_coef": 2}).status == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"schedule": "a"}, "schedule"),
        ({"schedule": [[0.1]]}, "schedule"),
        ({"schedule": [[0.2, "a"], [0.1, "b"]]}, "schedule"),
        ({"schedule": [{"seconds": 0.1, "tempo": 3}]}, "schedule"),
        ({"schedule": [[0.1, "a\x00"]]}, "schedule"),
        ({"schedule": [[9, "a"]]}, "schedule"),
        ({"schedule": [[1e308, "a"]]}, "schedule"),
        ({"schedule": [[10**308, "a"]]}, "schedule"),
        ({"schedule": [[0.1, "a"]] * 1001}, "schedule"),
        ({"schedule": [{"seconds": 0.1, "cfg_coef": 1}], "negative_prompt": "a"}, "schedule"),
        ({"endless": True, "duration": None}, "endless"),
        ({"endless": True, "stream": True}, "duration"),
    ],
)
def test_schedules_that_are_refused(server: Server, body, param):
    answer = server.post(GENERATE, {"prompt": "x", "duration": 0.5, **body})
    assert answer.status == 400, answer.body
    if param is not None:
        assert answer.error["param"] == param
