"""Clients of others: OpenAI's own, unchanged, and requests made from our OpenAPI document."""

import functools
import io
import json
import subprocess
import sys
import wave

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

import serve_load

from musicgen_jax import testing
from musicgen_jax.serving.http import openapi
from musicgen_jax.serving.http.settings import Settings
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers.http_server import GENERATE, SMALL, SPEECH, serving

TOKEN = "sk-test"


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler(testing.random_model(SMALL).parts, slots=2, queue=32) as scheduler:
        assert scheduler.ready.wait(240)
        yield scheduler


@pytest.fixture(scope="module")
def client(scheduler):
    openai = pytest.importorskip("openai", reason="needs the extra [serve-test]")
    with (
        serving(scheduler, token=TOKEN, max_duration=20.0) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0) as client,
    ):
        yield client


@pytest.mark.extra
def test_openai_speech(client, tmp_path):
    speech = client.audio.speech.create(model="tts-1", voice="alloy", input="a calm waltz")
    assert speech.content[:3] in (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xe3")
    speech.write_to_file(tmp_path / "waltz.mp3")
    with client.audio.speech.with_streaming_response.create(
        model="debug",
        voice="alloy",
        input="a calm waltz",
        instructions="slow",
        response_format="wav",
        speed=1.0,
        extra_body={"duration": 1.5, "seed": 7},
    ) as response:
        assert response.headers["x-seed"] == "7"
        data = b"".join(response.iter_bytes())
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnframes(), file.getframerate()) == (6000, 4000)


@pytest.mark.extra
def test_openai_models_and_errors(client):
    import openai

    assert [model.id for model in client.models.list()] == ["debug"]
    assert client.models.retrieve("debug").owned_by == "musicgen-jax"
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.speech.create(model="debug", voice="x", input="x", extra_body={"top_k": -1})
    assert (caught.value.param, caught.value.code) == ("top_k", "invalid_value")
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-5'"):
        client.audio.speech.create(model="gpt-5", voice="x", input="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_the_document_describes_what_is_there(scheduler):
    with serving(scheduler, max_duration=5.0) as server:
        document = server.ask("GET", "/openapi.json").json
        assert document == openapi.document(server.service.settings)
        generate = document["paths"][GENERATE]["post"]["requestBody"]["content"]
        fields = generate["application/json"]["schema"]["properties"]
        assert fields["audio_length"]["maximum"] == 5.0
        for name, field in fields.items():
            if "default" in field:
                body = {"prompt": "x", "duration": 0.1}
                if name not in ("duration", "audio_length"):
                    body[name] = field["default"]
                assert server.post(GENERATE, body).status == 200, name
        assert "input" in json.dumps(document["paths"][SPEECH])
        for path, operations in document["paths"].items():
            for method in operations.keys() & {"get", "post", "delete"}:
                answer = server.ask(method.upper(), path.replace("{", "").replace("}", ""))
                assert str(answer.status) in operations[method]["responses"], (method, path)
    assert "security" in openapi.document(Settings("m", token="x"))


@pytest.mark.slow
def test_under_load_the_samples_are_those_of_generate(capsys):
    options = ["--slots", "2", "--queue", "2", "--clients", "6", "--requests", "13"]
    assert serve_load.main(["--quick", "--seconds", "2", *options]) == 0
    said = capsys.readouterr().out
    assert "11 clips, " in said
    assert "2 clients left, " in said
    assert "different from generate(slots=2): 0 of 11" in said


@pytest.mark.slow
def test_a_load_that_goes_on_for_a_time_says_what_memory_it_takes(capsys):
    assert serve_load.main(["--quick", "--seconds", "0.4", "--minutes", "0.02"]) == 0
    said = capsys.readouterr().out
    assert said.count(" MB, ") == 20
    assert "different from generate(slots=4): 0 of " in said


def test_a_load_counts_clients_that_are_cut_off_and_goes_on(capsys, monkeypatch):
    settings = functools.partial(Settings, deadline=0.01)
    monkeypatch.setattr(serve_load, "Settings", settings)
    assert serve_load.main(["--quick", "--seconds", "2", "--requests", "5"]) == 1
    said = capsys.readouterr()
    assert "0 clips, " in said.out
    assert "5 were cut off" in said.out
    assert said.err.count("cut off: ") == 5


@pytest.mark.extra
@pytest.mark.slow
def test_schemathesis_finds_nothing(scheduler, tmp_path):
    """Not that all valid bodies are taken: random bytes are not a melody.

    Always the same requests, so that the test does not depend on luck.
    """
    pytest.importorskip("schemathesis", reason="needs the extra [serve-test]")
    compiled = scheduler.compilations  # the tests before have made clips in this process
    with serving(scheduler, max_duration=0.5, max_job_duration=0.5) as server:
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
            "--checks", "all", "--exclude-checks", "positive_data_acceptance",
            "--max-examples", "50", "--generation-deterministic", "--request-timeout", "60",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout
        assert "14 selected / 14 total" in done.stdout
        assert server.ask("GET", "/ready").status == 200
    assert scheduler.compilations == compiled
