"""Jobs: long pieces that are begun, followed, fetched in parts, and given up."""

import io
import json
import time

import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax import testing
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers.http_server import GENERATE, JOBS, SMALL, Server, serving, wait_until

PIECE = {"prompt": "a waltz", "duration": 7, "seed": 2}  # four windows


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler(testing.random_model(SMALL).parts, slots=1, queue=9) as scheduler:
        assert scheduler.ready.wait(240)
        yield scheduler


@pytest.fixture(scope="module")
def server(scheduler):
    with serving(
        scheduler, max_duration=8.0, max_job_duration=9999.0, jobs=4, job_bytes=1 << 20
    ) as server:
        yield server


def begin(server: Server, body) -> str:
    answer = server.post(JOBS, body)
    assert answer.status == 202
    assert answer.json["status"] in ("queued", "in_progress")
    assert answer.headers["location"] == f"{JOBS}/{answer.json['id']}"
    return answer.headers["location"]


def finish(server: Server, job: str) -> dict:
    wait_until(lambda: server.ask("GET", job).json["status"] not in ("queued", "in_progress"))
    return server.ask("GET", job).json


def test_a_job_is_the_clip(server: Server):
    job = begin(server, PIECE)
    done = finish(server, job)
    assert (done["status"], done["position"], done["seed"], done["error"]) == (
        "completed",
        0,
        2,
        None,
    )
    assert done["progress"]["steps"] == done["progress"]["total"]
    clip, audio = server.post(GENERATE, PIECE), server.ask("GET", f"{job}/audio")
    assert audio.body == clip.body
    assert done["bytes"] == len(audio.body)
    for name in ("x-seed", "x-program", "x-settings", "content-type"):
        assert audio.headers[name] == clip.headers[name]
    assert server.ask("DELETE", job).json["status"] == "completed"
    assert server.ask("GET", job).error["code"] == "job_not_found"


def test_longer_than_a_clip_may_be(server: Server):
    assert server.post(GENERATE, {**PIECE, "duration": 9}).status == 400
    assert server.post(JOBS, {**PIECE, "duration": 10_000}).status == 400
    job = begin(server, {**PIECE, "duration": 9, "response_format": "flac"})
    assert finish(server, job)["status"] == "completed"
    audio = soundfile.read(io.BytesIO(server.ask("GET", f"{job}/audio").body))[0]
    assert len(audio) == 9 * 4000


def test_the_newest_finished_job_stays_however_large_it_is(server: Server):
    large, small = (begin(server, {**PIECE, "duration": seconds}) for seconds in (140, 1))
    assert finish(server, small)["status"] == "completed"
    assert finish(server, large)["bytes"] > 1 << 20  # more than the server keeps
    server.service.jobs.forget_old()
    assert server.ask("GET", f"{large}/audio").status == 200
    gone = server.ask("GET", small)
    assert (gone.status, gone.error["code"]) == (404, "job_not_found")
    assert "is kept for at most 3600 s" in gone.error["message"]


def test_a_wav_file_that_would_be_too_large_is_refused_at_once(server: Server, monkeypatch):
    monkeypatch.setattr("musicgen_jax.audio.encoding._MAX_WAV", 8000)
    for body in ({**PIECE, "duration": 2}, {**PIECE, "duration": 2, "response_format": "wav"}):
        for path in (JOBS, GENERATE):
            answer = server.post(path, body)
            assert (answer.status, answer.error["param"]) == (400, "response_format")
            assert "at most 4 GiB: ask for flac" in answer.error["message"]
    flac = {**PIECE, "duration": 2, "response_format": "flac"}
    assert finish(server, begin(server, flac))["status"] == "completed"


def test_parts_of_a_file(server: Server):
    job = begin(server, PIECE)
    finish(server, job)
    audio = f"{job}/audio"
    whole = server.ask("GET", audio)
    data, etag = whole.body, whole.headers["etag"]
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, part in (
        ("bytes=0-9", data[:10]),
        ("bytes=100-", data[100:]),
        ("bytes=-7", data[-7:]),
        ("bytes=5-99999999", data[5:]),
    ):
        answer = server.ask("GET", audio, headers={"Range": asked})
        assert (answer.status, answer.body) == (206, part)
        first = len(data) - 7 if asked == "bytes=-7" else int(asked[6:].split("-")[0])
        said = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        assert answer.headers["content-range"] == said
    for asked in ("bytes=99999999-", "bytes=9-3", "bytes=-0"):
        answer = server.ask("GET", audio, headers={"Range": asked})
        assert (answer.status, answer.error["code"]) == (416, "no_such_range")
        assert answer.headers["content-range"] == f"bytes */{len(data)}"
    for headers in ({"Range": "seconds=0-1"}, {"Range": "bytes=0-1,4-5"}, {"Range": "bytes=-"},
                    {"Range": "bytes=0-9", "If-Range": '"old"'}):  # fmt: skip
        assert server.ask("GET", audio, headers=headers).body == data
    headers = {"Range": "bytes=0-9", "If-Range": etag}
    assert server.ask("GET", audio, headers=headers).body == data[:10]
    for asked in ({}, {"Range": "bytes=0-9"}):  # a head has no parts
        head = server.ask("HEAD", audio, headers=asked)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(data))


def test_the_end_waits_for_a_job_of_which_only_the_head_was_asked_for(server: Server):
    job = begin(server, PIECE)
    finish(server, job)
    jobs = server.service.jobs
    before = jobs.unfetched
    server.ask("HEAD", f"{job}/audio")
    assert jobs.unfetched == before
    server.ask("GET", f"{job}/audio")
    assert jobs.unfetched == before - 1


def test_events_to_the_end(server: Server):
    job = begin(server, {**PIECE, "duration": 20})
    answer = server.ask("GET", f"{job}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event.split("\n") for event in answer.body.decode().split("\n\n")[:-1]]
    names = [name.removeprefix("event: ") for name, _ in events]
    assert names[-1] == "completed"
    assert set(names[:-1]) <= {"progress"}
    steps = [json.loads(data.removeprefix("data: "))["progress"]["steps"] for _, data in events]
    assert steps == sorted(steps)


def test_the_queue_and_the_end_of_a_job(server: Server, scheduler):
    first = begin(server, {**PIECE, "duration": 5000})
    wait_until(lambda: server.ask("GET", first).json["status"] == "in_progress")
    others = [begin(server, {**PIECE, "duration": 5000}) for _ in range(2)]
    assert all(server.ask("GET", job).json["position"] >= 0 for job in others)
    assert server.ask("GET", f"{first}/audio").error["code"] == "not_finished"
    with server.connect_and_send("GET", f"{first}/events"):  # a listener who leaves ends nothing
        pass
    time.sleep(0.1)
    assert server.ask("GET", first).json["status"] == "in_progress"
    for job in (first, *others):
        assert server.ask("DELETE", job).json["status"] == "cancelled"
        assert server.ask("GET", job).status == 404
    wait_until(lambda: scheduler.busy == 0)


def test_too_many_jobs(server: Server):
    jobs = [begin(server, {**PIECE, "duration": 5000}) for _ in range(4)]
    refused = server.post(JOBS, PIECE)
    assert (refused.status, refused.error["code"]) == (429, "too_many_jobs")
    assert int(refused.headers["retry-after"]) > 0
    server.ask("DELETE", jobs[0])
    kept = [begin(server, {**PIECE, "duration": 1})]
    finish(server, kept[0])
    assert server.post(JOBS, {"prompt": "la " * 200}).status == 400  # takes nobody's place
    assert server.ask("GET", kept[0]).status == 200
    another = begin(server, {**PIECE, "duration": 1})  # takes the place of the finished one
    assert server.ask("GET", kept[0]).status == 404
    for job in (*jobs[1:], another):
        server.ask("DELETE", job)


def test_old_results_make_room(server: Server):
    """A megabyte holds two pieces of a minute, not three."""
    jobs = []
    for seed in range(3):
        jobs.append(begin(server, {**PIECE, "duration": 60, "seed": seed}))
        finish(server, jobs[-1])
    wait_until(lambda: server.ask("GET", jobs[0]).status == 404, seconds=5)
    assert [server.ask("GET", job).status for job in jobs[1:]] == [200, 200]


def test_a_job_that_fails_says_why(server: Server):
    job = begin(server, {**PIECE, "duration": 9000, "deadline": 1})
    done = finish(server, job)
    assert (done["status"], done["error"]["code"]) == ("failed", "deadline_passed")
    answer = server.ask("GET", f"{job}/audio")
    assert (answer.status, answer.error["code"]) == (409, "deadline_passed")


def test_there_is_no_such_job(server: Server):
    for path in ("", "/events", "/audio"):
        answer = server.ask("GET", f"{JOBS}/job_x{path}")
        assert (answer.status, answer.error["code"]) == (404, "job_not_found")
    allowed = server.ask("PUT", f"{JOBS}/x").headers["allow"]
    assert set(allowed.split(", ")) == {"DELETE", "GET", "HEAD"}
