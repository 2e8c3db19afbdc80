"""Uploads: a melody or a style with a request, and everything that only says it is one."""

import dataclasses
import gzip
import io
import json
import zipfile

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax import testing
from musicgen_jax.audio.files import to_int16
from musicgen_jax.audio.level import apply_level
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers.http_server import GENERATE, JOBS, SMALL, Server, serving, wait_until

RATE = 4000
MELODY = dataclasses.replace(
    testing.DEBUG_MELODY, lm=dataclasses.replace(testing.DEBUG_MELODY.lm, num_layers=1)
)


@pytest.fixture(scope="module")
def model():
    return testing.random_model(MELODY)


@pytest.fixture(scope="module")
def server(model):
    with (
        Scheduler(model.parts, slots=1, seconds=3.0) as scheduler,
        serving(scheduler, max_duration=3.0, upload_bytes=1 << 20, upload_seconds=60.0) as server,
    ):
        assert scheduler.ready.wait(240)
        wait_until(lambda: server.ask("GET", "/ready").status == 200, seconds=240)
        yield server


def sung(seconds: float = 3.0, rate: int = RATE) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (300 + 200 * (time % 1 > 0.5)) * time)).astype(np.float32)


def file(audio: np.ndarray, rate: int = RATE, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    target = io.BytesIO()
    soundfile.write(target, audio, rate, subtype, format=form)
    return target.getvalue()


def form(*parts: tuple[str, bytes | str], end: bool = True) -> tuple[bytes, dict[str, str]]:
    """A form's body and headers; a part that is bytes is a file."""
    body = b""
    for name, value in parts:
        filename = '; filename="a.wav"' if isinstance(value, bytes) else ""
        body += f'--XX\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode()
        body += (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return body + b"--XX--\r\n" * end, {"Content-Type": "multipart/form-data; boundary=XX"}


def samples(data: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(data), dtype="int16")[0]


def test_a_melody_is_followed(server: Server, model):
    asked = {"prompt": "a waltz", "seed": 4, "duration": 2}
    texts = [(name, str(value)) for name, value in asked.items()]
    encoded = [file(sung()), file(sung(), form="FLAC")]
    bodies = [form(*texts, ("melody", each)) for each in encoded]
    answers = [server.post(GENERATE, *body) for body in bodies]
    without = server.post(GENERATE, asked)
    assert server.service.scheduler.compilations == 0
    audio = samples(encoded[0]).astype(np.float32) / 2**15
    made = model.generate_with_chroma(
        ["a waltz"], audio[None], RATE, separate=False, duration=2.0, seed=4
    )
    expected = to_int16(apply_level(made.audio[0], "clip", 0.0))[0].astype(int)
    for answer in answers:
        assert np.abs(samples(answer.body) - expected).max() <= 2  # another program
    assert np.abs(samples(without.body) - expected).max() > 50


def test_a_form_without_a_file_and_a_job_with_one(server: Server):
    body = form(("prompt", "x"), ("duration", "1"), ("stream", "true"), ("response_format", "pcm"))
    plain = {"prompt": "x", "duration": 1, "response_format": "pcm"}
    assert server.post(GENERATE, *body).body == server.post(GENERATE, plain).body
    parts = ("prompt", "x"), ("duration", "1"), ("melody", file(sung()))
    job = server.post(JOBS, *form(*parts)).headers["location"]
    wait_until(lambda: server.ask("GET", job).json["status"] == "completed")
    assert server.ask("GET", f"{job}/audio").body == server.post(GENERATE, *form(*parts)).body


def test_an_empty_text_in_a_form_is_the_default_and_documented(server: Server):
    document = server.ask("GET", "/openapi.json").json
    content = document["paths"][GENERATE]["post"]["requestBody"]["content"]
    plain = server.post(GENERATE, {"prompt": "x", "duration": 0.2})
    given = {"prompt", "input", "description", "descriptions", "duration", "audio_length"}
    for name, field in content["multipart/form-data"]["schema"]["properties"].items():
        if name in ("melody", "style", "continue_from"):
            assert field["contentMediaType"] == "application/octet-stream"
            continue
        assert "string" in field["type"], name
        assert "" in field.get("enum", [""]), name
        assert "minLength" not in field, name
        if name not in given:
            body = form(("prompt", "x"), ("duration", "0.2"), (name, ""))
            assert server.post(GENERATE, *body).body == plain.body, name


def test_a_style_is_taken():
    config = dataclasses.replace(testing.DEBUG_STYLE, max_duration=5.0)
    model = testing.random_model(config)
    with (
        Scheduler(model.parts, slots=1, seconds=2.0) as scheduler,
        serving(scheduler) as server,
    ):
        wait_until(lambda: server.ask("GET", "/ready").status == 200, seconds=240)
        noise = np.random.default_rng(0).normal(size=4 * RATE).astype(np.float32) / 8
        body = form(("prompt", "x"), ("duration", "1"), ("seed", "1"), ("style", file(noise)))
        answer = server.post(GENERATE, *body)
        assert answer.status == 200
        assert scheduler.compilations == 0
        audio = samples(file(noise)).astype(np.float32) / 2**15
        made = model.generate_with_style(["x"], audio[None], RATE, duration=1.0, seed=1)
        expected = to_int16(apply_level(made.audio[0], "clip", 0.0))[0].astype(int)
        assert np.abs(samples(answer.body) - expected).max() <= 2
        short = form(("prompt", "x"), ("style", file(noise[:RATE])))
        assert server.post(GENERATE, *short).error["code"] == "invalid_audio"


def test_audio_is_continued(server: Server, model):
    """The music begins with it, as the codec makes it; with a melody too, and in a job."""
    beginning = file(sung(0.5), form="FLAC")
    texts = ("prompt", "a waltz"), ("seed", "4"), ("duration", "1.5")
    body = form(*texts, ("continue_from", beginning))
    answer = server.post(GENERATE, *body)
    audio = samples(file(sung(0.5))).astype(np.float32) / 2**15
    made = model.generate_continuation(audio[None], RATE, ["a waltz"], duration=1.5, seed=4)
    expected = to_int16(apply_level(made.audio[0], "clip", 0.0))[0].astype(int)
    assert np.abs(samples(answer.body) - expected).max() <= 2  # another program
    assert json.loads(answer.headers["x-settings"])["continue_from"]
    both = server.post(
        GENERATE, *form(*texts, ("continue_from", beginning), ("melody", file(sung())))
    )
    heard = samples(both.body).astype(int)
    assert len(heard) == len(expected)
    same = int(0.3 * RATE)  # the codec looks ahead, so the last of the prompt differs a little
    assert np.abs(heard - expected)[:same].max() <= 2
    assert np.abs(heard - expected)[RATE:].max() > 50
    job = server.post(JOBS, *body).headers["location"]
    wait_until(lambda: server.ask("GET", job).json["status"] == "completed")
    assert server.ask("GET", f"{job}/audio").body == answer.body


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (sung(1.0), "leaves nothing of the duration"),
        (np.zeros(RATE // 2, np.float32), "silent"),
        (np.zeros(60 * RATE, np.float32), "too long"),
        (np.full(RATE // 2, np.nan, np.float32), "NaN"),
    ],
    ids=["as long as the music", "silent", "longer than the window", "not numbers"],
)
def test_what_cannot_be_continued(server: Server, audio, words):
    data = file(audio, subtype="FLOAT")
    answer = server.post(
        GENERATE, *form(("prompt", "x"), ("duration", "1"), ("continue_from", data))
    )
    error = answer.error
    assert (answer.status, error["code"], error["param"]) == (
        400, "invalid_audio", "continue_from",
    ), answer.body  # fmt: skip
    assert words in error["message"]


def bombs() -> dict[str, bytes]:
    silence = np.zeros(3 * 3600 * RATE // 10, np.int16)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(1 << 26))
    wide = file(np.zeros((2, 100), np.float32))
    whole = file(sung())
    return {
        "a text": b"this is not audio, it is a text. " * 100,
        "nothing": b"",
        "one byte": b"R",
        "a zip bomb": zipped.getvalue(),
        "a gzip bomb": gzip.compress(bytes(1 << 26), mtime=0),
        "three hours": file(silence, RATE // 10, "FLAC"),
        "three hours in mp3": _three_hours_of_mp3(),
        "many channels": wide,
        "cut off": whole[: len(whole) // 2],
        "a lying header": whole[:40] + b"\xff\xff\xff\x7f" + whole[44:],
        "not a number": file(np.full(RATE, np.nan, np.float32), subtype="FLOAT"),
        "an mp3 header": b"\xff\xfb\x90\x00" + bytes(1000),
        "a tag": b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(1000),
    }


def _three_hours_of_mp3() -> bytes:
    frame = b"\xff\xe3\x18\xc4".ljust(72, b"\0")  # MPEG 2.5, 8 kb/s, 8 kHz: 72 ms in 72 bytes
    return frame * (1 << 13)


@pytest.mark.parametrize("what", sorted(set(bombs()) - {"cut off", "a lying header"}))
def test_what_is_not_a_melody(server: Server, what):
    answer = server.post(GENERATE, *form(("prompt", "x"), ("melody", bombs()[what])))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (
        400, "invalid_audio", "melody",
    ), answer.body[:200]  # fmt: skip


@pytest.mark.parametrize("what", ["cut off", "a lying header"])
def test_a_damaged_header_is_an_error_or_what_is_left(server: Server, what):
    """libsndfile repairs lengths in the header of a wav file."""
    body = form(("prompt", "x"), ("duration", "0.2"), ("melody", bombs()[what]))
    assert server.post(GENERATE, *body).status in (200, 400)


def test_forms_that_are_wrong(server: Server):
    melody = ("melody", file(sung()))
    wrong = {
        "invalid_form": [
            form(("prompt", "x"), melody, end=False),
            (b"", {"Content-Type": "multipart/form-data"}),
            (b"nothing", {"Content-Type": "multipart/form-data; boundary=XX"}),
            (b"x", {"Content-Type": f"multipart/form-data; boundary*{'1' * 5000}=XX"}),
            form(*[(f"f{i}", "x") for i in range(100)]),
        ],
        "unknown_field": [form(("prompt", "x"), (name, value)) for name, value in (
            ("tempo", "3"), ("a", b"b"))],
        "invalid_type": [form(("prompt", "x"), ("seed", seed)) for seed in ("three", "[]")]
        + [form(("prompt", "x"), ("schedule", schedule)) for schedule in (
            '[{"seconds": 0, "seconds": 0.1, "prompt": "y"}]', '[[NaN, "y"]]')],
        "missing_field": [form(melody)],
        "invalid_value": [
            form(("prompt", "x"), ("prompt", "y")),
            form(("prompt", "x"), melody, melody),
            form(("prompt", "x"), *[("continue_from", file(sung(0.2)))] * 2),
            form(("prompt", "x"), ("style", file(sung()))),
            form(("prompt", "x"), ("seed", "-1")),
        ],
    }  # fmt: skip
    for code, bodies in wrong.items():
        for body in bodies:
            answer = server.post(GENERATE, *body)
            assert (answer.status, answer.error["code"]) == (400, code), answer.body
    answer = server.post(GENERATE, *form(("prompt", "x"), ("melody", bytes(2 << 20))))
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")


def test_a_text_model_takes_no_melody():
    with (
        Scheduler(testing.random_model(SMALL).parts, slots=1, warm=False) as scheduler,
        serving(scheduler) as server,
    ):
        answer = server.post(GENERATE, *form(("prompt", "x"), ("melody", file(sung()))))
        assert answer.error["message"] == "debug takes no melody"


def test_only_a_few_uploads_at_once(server: Server, monkeypatch):
    monkeypatch.setattr(server.service, "_uploads", server.service.settings.uploads)
    answer = server.post(GENERATE, *form(("prompt", "x"), ("melody", file(sung()))))
    assert (answer.status, answer.error["code"]) == (429, "too_many_uploads")
    assert answer.headers["retry-after"] == "1"


def test_an_upload_that_is_cut_off_leaves_nothing(server: Server):
    body, headers = form(("prompt", "x"), ("melody", bytes(1 << 19)))
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: {headers['Content-Type']}\r\n\r\n"
    connection = server.raw(head.encode() + body[: 1 << 18])
    wait_until(lambda: server.service._uploads == 1)
    connection.close()
    wait_until(lambda: server.service._uploads == 0)
    assert server.ask("GET", "/health").status == 200
