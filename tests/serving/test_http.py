"""The HTTP server: what it sends is the scheduler's music, and every refusal says why."""

import base64
import contextlib
import http.client
import io
import json

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax import testing
from musicgen_jax.audio.files import to_int16
from musicgen_jax.audio.level import apply_level, normalize_audio
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers.http_server import GENERATE, SMALL, SPEECH, Server, serving, wait_until

RATE = 4000


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler(testing.random_model(SMALL).parts, slots=2, queue=32) as scheduler:
        assert scheduler.ready.wait(240)
        yield scheduler


@pytest.fixture(scope="module")
def server(scheduler):
    with serving(scheduler, max_duration=9999.0, log_prompts=True) as server:
        yield server


def made(scheduler, text: str | None, seconds: float, seed: int = 0, **sampling) -> np.ndarray:
    """Audio from the scheduler itself, float32 [C, W]."""
    request = Request(
        config=SMALL,
        descriptions=[text],
        duration=seconds,
        seed=seed,
        sampling=Sampling(**sampling),
    )
    return scheduler.submit(request).result().audio[0]


def clipped(audio: np.ndarray) -> np.ndarray:
    """int16 [W] as the server sends mono audio."""
    return to_int16(apply_level(audio, "clip", 0.0))[0]


def samples(data: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(data), dtype="int16")[0]


# --- Music ----------------------------------------------------------------------------------------


def test_a_clip_is_that_of_the_scheduler(server: Server, scheduler):
    body = {"prompt": "a calm waltz", "duration": 1.5, "seed": 3, "temperature": 1.1, "top_k": 9,
            "cfg_coef": 2.5}  # fmt: skip
    answer = server.post(GENERATE, body)
    assert answer.status == 200
    assert answer.headers["content-type"] == "audio/wav"
    expected = made(scheduler, "a calm waltz", 1.5, 3, temperature=1.1, top_k=9, cfg_coef=2.5)
    np.testing.assert_array_equal(samples(answer.body), clipped(expected))
    assert answer.headers["x-seed"] == "3"
    assert answer.headers["x-program"] == str(scheduler.programs[0])
    assert json.loads(answer.headers["x-settings"])["top_k"] == 9


def test_the_comment_says_how_to_make_it_again(server: Server, scheduler):
    for form in ("wav", "flac", "mp3", "opus"):
        body = {"prompt": "drums \N{SNOWMAN}", "duration": 0.5, "seed": 8, "response_format": form}
        with soundfile.SoundFile(io.BytesIO(server.post(GENERATE, body).body)) as file:
            comment = json.loads(file.comment)
        assert comment["prompt"] == body["prompt"]
        assert (comment["model"], comment["seed"], comment["duration"]) == ("debug", 8, 0.5)
        assert comment["program"] == str(scheduler.programs[0])


def test_names_of_vllm_omni_and_of_audiocraft(server: Server):
    ours = {"prompt": "bells", "duration": 0.5, "cfg_coef": 2.0}
    theirs = {"input": "bells", "audio_length": 0.5, "guidance_scale": 2, "speed": 1.0,
              "audio_start": 0, "stream_format": "audio", "model": None}  # fmt: skip
    audiocraft = {"descriptions": ["bells"], "duration": 0.5, "cfg_coef": 2.0, "seed": 0.0}
    first, *others = (server.post(GENERATE, body).body for body in (ours, theirs, audiocraft))
    assert len(samples(first)) == RATE / 2
    assert all(samples(other).tobytes() == samples(first).tobytes() for other in others)


@pytest.mark.parametrize("form", ["wav", "pcm", "flac"])
def test_a_stream_is_the_whole(server: Server, form):
    body = {"prompt": "x", "duration": 2.2, "response_format": form}
    whole, streamed = (server.post(GENERATE, {**body, "stream": on}) for on in (False, True))
    assert streamed.headers["content-type"] == whole.headers["content-type"]
    assert "content-length" not in streamed.headers
    if form == "flac":
        assert samples(streamed.body).tobytes() == samples(whole.body).tobytes()
    else:
        assert streamed.body == whole.body


@pytest.mark.parametrize("form", ["mp3", "opus"])
def test_lossy_formats(server: Server, form):
    for stream in (False, True):
        body = {"prompt": "x", "duration": 2, "response_format": form, "stream": stream}
        answer = server.post(GENERATE, body)
        assert answer.headers["content-type"] == {"mp3": "audio/mpeg", "opus": "audio/ogg"}[form]
        audio, rate = soundfile.read(io.BytesIO(answer.body))
        assert rate == 8000  # the lowest that these formats have
        if not stream:
            assert abs(len(audio) - 2 * rate) < rate / 10


def test_a_stream_begins_before_the_music_ends(server: Server):
    connection = server.connect()
    body = {"prompt": "x", "duration": 9000, "stream": True, "response_format": "pcm"}
    connection.request("POST", GENERATE, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert len(answer.read(RATE)) == RATE  # half a second
    assert server.service.scheduler.busy == 1
    connection.close()
    wait_until(lambda: server.service.scheduler.busy == 0)


def test_a_client_that_leaves_frees_its_slot(server: Server):
    connections = [server.connect() for _ in range(3)]
    for connection in connections:
        body = json.dumps({"prompt": "x", "duration": 9000})
        connection.request("POST", GENERATE, body, {"Content-Type": "application/json"})
    scheduler = server.service.scheduler
    wait_until(lambda: scheduler.busy == 2 and scheduler.waiting == 1)
    for connection in connections:
        connection.close()
    wait_until(lambda: scheduler.busy == 0 and scheduler.waiting == 0, seconds=5)
    assert server.post(GENERATE, {"prompt": "x", "duration": 0.5}).status == 200


def test_levels(server: Server, scheduler):
    body = {"prompt": "x", "duration": 1, "strategy": "peak"}
    answer = server.post(GENERATE, body)
    expected = normalize_audio(made(scheduler, "x", 1.0), RATE, "peak", loudness_compressor=True)
    np.testing.assert_array_equal(samples(answer.body), to_int16(expected)[0])
    assert server.post(GENERATE, {**body, "stream": True}).error["param"] == "strategy"


def test_music_without_a_description(server: Server, scheduler):
    answer = server.post(GENERATE, {"prompt": None, "duration": 0.5})
    np.testing.assert_array_equal(samples(answer.body), clipped(made(scheduler, None, 0.5)))


def test_speech_has_openais_fields_and_ours(server: Server, scheduler):
    body = {"model": "gpt-4o-mini-tts", "input": "a waltz", "voice": "alloy", "duration": 0.5,
            "instructions": "slow", "response_format": "pcm"}  # fmt: skip
    expected = clipped(made(scheduler, "a waltz, slow", 0.5)).tobytes()
    assert server.post(SPEECH, body).body == expected
    answer = server.post(SPEECH, {**body, "stream_format": "sse"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.body.decode().split("\n\n")[:-1]
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == expected
    assert done["type"] == "speech.audio.done"
    assert server.post(SPEECH, {**body, "response_format": "mp3"}).headers["content-type"] == (
        "audio/mpeg"
    )


# --- The server -----------------------------------------------------------------------------------


def test_what_it_says_about_itself(server: Server, scheduler):
    assert server.ask("GET", "/health").json == {"status": "ok", "model": "debug"}
    assert server.ask("GET", "/ready").status == 200
    (model,) = server.ask("GET", "/v1/models").json["data"]
    assert (model["id"], model["object"], model["sample_rate"]) == ("debug", "model", RATE)
    assert server.ask("GET", "/v1/models/debug").json == model
    assert server.ask("GET", "/v1/models/other").error["code"] == "model_not_found"
    assert server.ask("HEAD", "/health").body == b""
    assert server.ask("GET", "/nothing").error["code"] == "not_found"
    answer = server.ask("DELETE", GENERATE)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error["code"] == "method_not_allowed"


def test_metrics(server: Server):
    server.post(GENERATE, {"prompt": "x", "duration": 0.5})
    server.service.pace.observe()
    answer = server.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(
        line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if line[0] != "#"
    )
    assert values["musicgen_jax_slots"] == "2.0"
    assert values["musicgen_jax_ready"] == "1.0"
    assert values["musicgen_jax_compilations_total"] == "0.0"
    assert float(values['musicgen_jax_requests_total{route="/v1/audio/generate",status="200"}']) > 0
    assert float(values["musicgen_jax_first_audio_seconds_count"]) > 0
    assert float(values["musicgen_jax_audio_seconds_total"]) >= 0.5
    assert float(values["musicgen_jax_steps_total"]) >= 25


# --- Bad input ------------------------------------------------------------------------------------

WRONG = [
    ({"prompt": "x", "tempo": 3}, "tempo", "unknown_field"),
    ({"duration": 1}, "prompt", "missing_field"),
    ({"prompt": 3}, "prompt", "invalid_type"),
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": " \n"}, "prompt", "invalid_value"),
    ({"prompt": "a\0b"}, "prompt", "invalid_value"),
    ({"prompt": "\x1b[2J"}, "prompt", "invalid_value"),
    ({"prompt": "\ud800"}, "prompt", "invalid_value"),
    ({"prompt": "x" * 1_000_000}, "prompt", "text_too_long"),
    ({"input": "la " * 200}, None, "invalid_value"),  # too many tokens
    ({"prompt": "x", "input": "x"}, "input", "invalid_value"),
    ({"descriptions": ["x", "y"]}, "descriptions", "invalid_value"),
    ({"descriptions": "x"}, "descriptions", "invalid_type"),
    ({"prompt": "x", "duration": "8"}, "duration", "invalid_type"),
    ({"prompt": "x", "duration": True}, "duration", "invalid_type"),
    ({"prompt": "x", "duration": 0}, "duration", "invalid_value"),
    ({"prompt": "x", "duration": 10_000}, "duration", "invalid_value"),
    ({"prompt": "x", "audio_length": -1}, "audio_length", "invalid_value"),
    ({"prompt": "x", "seed": -1}, "seed", "invalid_value"),
    ({"prompt": "x", "seed": 2**32}, "seed", "invalid_value"),
    ({"prompt": "x", "seed": 1.5}, "seed", "invalid_type"),
    ({"prompt": "x", "top_k": 251}, "top_k", "invalid_value"),
    ({"prompt": "x", "top_p": 1.1}, "top_p", "invalid_value"),
    ({"prompt": "x", "temperature": -1}, "temperature", "invalid_value"),
    ({"prompt": "x", "cfg_coef_beta": 2}, "cfg_coef_beta", "invalid_value"),
    ({"prompt": "x", "extend_stride": 99}, "extend_stride", "invalid_value"),
    ({"prompt": "x", "join": "glue"}, "join", "invalid_value"),
    ({"prompt": "x", "response_format": "aac"}, "response_format", "invalid_value"),
    ({"prompt": "x", "stream": "yes"}, "stream", "invalid_type"),
    ({"prompt": "x", "speed": 2}, "speed", "invalid_value"),
    ({"prompt": "x", "deadline": 0.9}, "deadline", "invalid_value"),
    ({"prompt": "x", "deadline": 1e300}, "deadline", "invalid_value"),
    ({"prompt": "x", "model": "other"}, "model", "model_not_found"),
]


def test_null_is_the_same_as_missing(scheduler):
    with serving(scheduler, max_duration=0.5) as server:
        for nothing in ({}, {"duration": None}, {"audio_length": None, "seed": None}):
            answer = server.post(GENERATE, {"prompt": "x", **nothing})
            assert (answer.status, answer.headers.get("x-duration")) == (200, "0.5")
        assert server.post(GENERATE, {"prompt": "x", "duration": 0.6}).error["param"] == "duration"


@pytest.mark.parametrize(("body", "param", "code"), WRONG, ids=lambda value: ascii(value)[:40])
def test_a_wrong_field(server: Server, body, param, code):
    answer = server.post(GENERATE, body)
    assert answer.status == (404 if code == "model_not_found" else 400)
    assert (answer.error["param"], answer.error["code"]) == (param, code)
    assert answer.error["type"] in ("invalid_request_error", "not_found_error")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"prompt": "x", "duration": NaN}',
        b'{"prompt": "x", "duration": -Infinity}',
        b'{"prompt": "x", "duration": 1e999}',
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "x", "prompt": "y"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda body: ascii(body[:30]),
)
def test_a_wrong_body(server: Server, body):
    answer = server.post(GENERATE, body)
    assert answer.status == 400
    assert answer.error["code"] in ("invalid_json", "invalid_type")


def test_a_body_that_is_not_json_or_too_large(server: Server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "nothing"):
        answer = server.post(GENERATE, b"{}", {"Content-Type": kind})
        assert (answer.status, answer.error["code"]) == (415, "media_type")
    answer = server.post(GENERATE, b"{}", {"Content-Encoding": "gzip"})
    assert (answer.status, answer.error["code"]) == (415, "content_encoding")
    answer = server.post(GENERATE, b"x" * ((2 << 20) + 1))
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")


def test_a_deadline(server: Server):
    answer = server.post(GENERATE, {"prompt": "x", "duration": 9000, "deadline": 1})
    assert (answer.status, answer.error["code"]) == (504, "deadline_passed")
    with contextlib.closing(server.connect()) as connection:
        body = {"prompt": "x", "duration": 9000, "deadline": 1, "stream": True}
        connection.request("POST", GENERATE, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):  # not a whole clip
            answer.read()
