"""The routes of the page: its files, what it is told, and files of the samples that it holds."""

import io
import json
import re
import threading

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax import testing
from musicgen_jax.conditioning.chroma import HOP
from musicgen_jax.serving.http.about import About, Choice
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers.http_server import serving

CHOICES = (Choice("other", True, "noise"), Choice("far", False, "noise", "fetch far"))
ABOUT = About("MIT licence", "Do what you like.", "It knows noise.", ("a calm hiss",), CHOICES)
HEAR = "noise; it does not know: {}".format
RATE = testing.DEBUG.sample_rate
KIND = {"Content-Type": "application/octet-stream"}
TOLD = {"prompt": "a calm hiss", "seed": 7}
WAVE = np.arange(-1000, 1000, dtype="<i2")


@pytest.fixture(scope="module")
def server():
    model = testing.random_model(testing.DEBUG_MELODY)
    with (
        Scheduler(model.parts, slots=1, warm=False) as scheduler,
        serving(scheduler, max_duration=2.0, hear=HEAR, page=ABOUT) as server,
    ):
        yield server


def body(told=None, samples=WAVE) -> bytes:
    return json.dumps(TOLD if told is None else told).encode() + b"\n" + samples.tobytes()


@pytest.mark.parametrize("path", ["/", "/app.js", "/app.css"])
def test_the_page_may_load_nothing_from_elsewhere(server, path):
    answer = server.ask("GET", path)
    assert answer.status == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert answer.headers["x-content-type-options"] == "nosniff"
    text = answer.body.decode().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"https?:/|url\(|@import", text)


def test_the_page_is_told_what_it_shows(server):
    told = server.ask("GET", "/app/about").json
    assert (told["model"], told["sample_rate"], told["max_duration"]) == ("debug", RATE, 2.0)
    assert (told["licence"], told["examples"]) == ("MIT licence", ["a calm hiss"])
    assert told["defaults"]["top_k"] == 250
    assert told["max_seed"] <= 2**53 - 1


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_samples_become_a_file_with_the_settings(server, form):
    answer = server.ask("POST", f"/app/encode/{form}", body(), KIND)
    assert answer.status == 200
    with soundfile.SoundFile(io.BytesIO(answer.body)) as file:
        np.testing.assert_array_equal(file.read(dtype="int16"), WAVE)
        assert file.samplerate == RATE
        assert json.loads(file.comment) == TOLD


@pytest.mark.parametrize(
    ("form", "data", "headers", "status", "words"),
    [
        ("exe", body(), KIND, 400, "must be one of wav"),
        ("wav", body(), {"Content-Type": "text/plain"}, 415, "application/octet-stream"),
        ("wav", b"", KIND, 400, "empty"),
        ("wav", b"{}\n", KIND, 400, "whole samples"),
        ("wav", b"{}\n123", KIND, 400, "whole samples"),
        ("wav", b"not JSON\n1234", KIND, 400, "not JSON"),
        ("wav", body(samples=np.zeros(2**17, "<i2")), KIND, 413, "bytes"),
    ],
)
def test_what_is_not_samples_is_refused(server, form, data, headers, status, words):
    answer = server.ask("POST", f"/app/encode/{form}", data, headers)
    assert answer.status == status
    assert words in answer.error["message"]


def test_a_melody_is_heard_as_the_model_hears_it(server):
    time = np.arange(12 * RATE) / RATE  # longer than the model's window
    pitch = np.where(time < 6, 440.0, 523.25)
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * pitch * time), RATE, format="FLAC")
    heard = server.ask("POST", "/app/chroma", file.getvalue(), KIND).json["pitches"]
    assert len(heard) == round(12 * RATE / HOP)
    middle = len(heard) // 2
    assert set(heard[1 : middle - 2]) == {9}  # A
    assert set(heard[middle + 2 : -2]) == {0}  # C
    answer = server.ask("POST", "/app/chroma", b"nothing", KIND)
    assert (answer.status, answer.error["code"]) == (400, "invalid_audio")
    assert server.ask("POST", "/app/chroma", file.getvalue(), {"Content-Type": "x"}).status == 415


def test_an_answer_says_what_the_model_understood(server):
    clip = {"prompt": "a café\n", "duration": 0.5}
    for stream in (False, True):
        answer = server.post("/v1/audio/generate", {**clip, "stream": stream})
        assert json.loads(answer.headers["x-heard"]) == HEAR("a café\n")
    silent = server.post("/v1/audio/generate", {**clip, "prompt": None})
    assert "x-heard" not in silent.headers


def test_a_named_clip_can_be_looked_at_while_it_is_made(server):
    told = []

    def look():
        while not told or told[-1]["steps"] < told[-1]["total"]:
            answer = server.ask("GET", "/app/clips/mine")
            assert answer.status == 200  # also before: a browser would report an error
            if answer.json is not None:
                told.append(answer.json)
            elif told:
                return

    looking = threading.Thread(target=look)
    looking.start()
    clip = {"prompt": "a hiss", "duration": 2}
    assert server.ask("POST", "/v1/audio/generate", clip, {"X-Clip": "mine"}).status == 200
    looking.join()
    assert told[0].keys() == {"position", "steps", "total", "schedule"}
    assert [each["steps"] for each in told] == sorted(each["steps"] for each in told)
    answer = server.ask("GET", "/app/clips/mine")
    assert (answer.status, answer.json) == (200, None)


def test_a_model_is_chosen_among_those_that_are_here(server, monkeypatch):
    chosen = []
    monkeypatch.setattr(server.service, "switch", chosen.append)
    for name, words in (("far", "fetch far"), ("/etc", "must be one of"), (3, "must be one of")):
        answer = server.ask("POST", "/app/model", {"name": name})
        assert answer.status == 400
        assert words in answer.error["message"]
    assert server.ask("POST", "/app/model", {"name": "other"}).status == 202
    assert chosen == ["other"]
    monkeypatch.setattr(server.service, "draining", "other is being loaded")
    again = server.ask("POST", "/app/model", {"name": "other"})
    assert (again.status, again.error["code"]) == (409, "not_now")
    assert chosen == ["other"]


def test_another_site_cannot_use_it(server):
    headers = {**KIND, "Origin": "https://example.org"}
    assert server.ask("POST", "/app/encode/wav", body(), headers).status == 403
    assert server.ask("GET", "/", headers={"Host": "example.org"}).status == 421
