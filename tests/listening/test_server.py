"""The study's server, over HTTP: what it hands out, whom it lets in, and that it loses nothing."""

import contextlib
import http.client
import json
import random
import signal
import socket
import threading
import time

import pytest

from musicgen_jax.errors import UserError
from musicgen_jax.listening import web
from musicgen_jax.listening.answers import Answers
from musicgen_jax.listening.server import StudyServer
from musicgen_jax.listening.study import clips_folder
from tests.helpers.studies import Client, Process, make_study, serving

TOKEN = "a long secret word"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    return make_study(root), root / "study"


def started(made, answers, **options):
    """A server in a thread of this process, and how to end it."""
    server = StudyServer(*made, answers, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def stop():
        server.shutdown()
        thread.join()
        server.server_close()

    return server, stop


@pytest.fixture
def answers(made, tmp_path):
    with Answers(tmp_path, made[0]) as store:
        yield store


@pytest.fixture
def client(made, answers):
    server, stop = started(made, answers)
    yield Client(server.server_port)
    stop()


@pytest.fixture
def guarded(made, answers):
    """A server that wants a token."""
    server, stop = started(made, answers, token=TOKEN)
    yield Client(server.server_port)
    stop()


def first_clip(client, rater):
    return client.get(f"/api/raters/{rater}")["items"][0]["clips"][0]["clip"]


# --- What it hands out ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/app.js", "/app.css", "/api/study", "/nowhere"])
def test_every_answer_forbids_outside_hosts(client, path):
    _, headers, _ = client.ask("GET", path)
    assert headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_the_page_names_no_other_host(client):
    for path in ("/", "/app.js", "/app.css"):
        _, _, body = client.ask("GET", path)
        assert b"http:" not in body
        assert b"https:" not in body
        assert b"//cdn" not in body


def test_nothing_that_a_rater_gets_names_a_system(made, client):
    key = client.join()
    texts = [client.ask("GET", path)[2] for path in ("/api/study", f"/api/raters/{key}")]
    for system in made[0].systems:
        assert not any(system.encode() in text for text in texts)
    assert b"piece0" not in texts[1]


def test_a_rater_sees_what_they_answered(client):
    key = client.join("Ada")
    clip = first_clip(client, key)
    sent = {"rater": key, "clip": clip, "scale": "overall", "score": 63, "heard": 1}
    assert client.post("/api/answers", sent) == (200, {"saved": True})
    tasks = client.get(f"/api/raters/{key}")
    assert tasks["name"] == "Ada"
    assert tasks["items"][0]["clips"][0] == {"clip": clip, "scores": {"overall": 63}}
    other = client.get(f"/api/raters/{client.join()}")
    assert not any(clip["scores"] for item in other["items"] for clip in item["clips"])


@pytest.mark.parametrize(
    ("wanted", "status", "first", "last"),
    [
        (None, 200, 0, None),
        ("bytes=0-", 206, 0, None),
        ("bytes=0-1", 206, 0, 2),
        ("bytes=100-199", 206, 100, 200),
        ("bytes=-10", 206, -10, None),
        ("bytes=10-999999999", 206, 10, None),
        ("bytes=0-1,5-6", 200, 0, None),
        ("bytes=9-2", 200, 0, None),
        ("bytes=-", 200, 0, None),
        ("lines=1-2", 200, 0, None),
    ],
)
def test_ranges(made, client, wanted, status, first, last):
    clip = first_clip(client, client.join())
    content = (clips_folder(made[1]) / clip).read_bytes()
    headers = {"Range": wanted} if wanted else {}
    found, answer, body = client.ask("GET", f"/clips/{clip}", **headers)
    assert (found, body) == (status, content[first:last])
    assert answer["Content-Type"] == "audio/wav"
    if status == 206:
        begin = first % len(content)
        assert answer["Content-Range"] == f"bytes {begin}-{begin + len(body) - 1}/{len(content)}"


@pytest.mark.parametrize("wanted", ["bytes=99999999-", "bytes=-0"])
def test_a_range_beyond_the_file(client, wanted):
    clip = first_clip(client, client.join())
    status, headers, body = client.ask("GET", f"/clips/{clip}", Range=wanted)
    assert (status, body) == (416, b"")
    assert headers["Content-Range"].startswith("bytes */")


def test_head_has_no_body(client):
    clip = first_clip(client, client.join())
    status, headers, body = client.ask("HEAD", f"/clips/{clip}")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 10_000


@pytest.mark.parametrize(
    "path",
    [
        "/clips/../study.json",
        "/clips/..%2fstudy.json",
        "/clips//etc/passwd",
        "/clips/%2e%2e/answers.sqlite",
        "/../study.json",
        "/study.json",
        "/answers.sqlite",
        "/clips/",
        "/clips/0000000000000000.wav",
        "/page/../server.py",
        "//[::1",
        "//etc/passwd",
    ],
)
def test_nothing_else_is_handed_out(client, path):
    status, _, body = client.ask("GET", path)
    assert status == 404
    assert "error" in json.loads(body)


# --- What it refuses --------------------------------------------------------------------------


def test_answers_are_checked(made, client, answers):
    key = client.join()
    clip = first_clip(client, key)
    good = {"rater": key, "clip": clip, "scale": "overall", "score": 50, "heard": 1.0}
    plain = made[0].items[1].clips[0].file  # of the piece without a melody
    for change, status in [
        ({"rater": "x"}, 404), ({"rater": None}, 404), ({"rater": ["x"]}, 404),
        ({"rater": "\ud800"}, 404),
        ({"clip": "0" * 16 + ".wav"}, 400), ({"clip": {}}, 400), ({"clip": None}, 400),
        ({"scale": "colour"}, 400), ({"scale": []}, 400),
        ({"clip": plain, "scale": "melody"}, 400),
        ({"score": 0}, 400), ({"score": 101}, 400), ({"score": 50.5}, 400), ({"score": "50"}, 400),
        ({"score": True}, 400), ({"score": None}, 400), ({"score": 10**400}, 400),
        ({"heard": -0.1}, 400), ({"heard": 1.1}, 400), ({"heard": "all"}, 400),
    ]:  # fmt: skip
        found, value = client.post("/api/answers", good | change)
        assert found == status, change
        assert "\n" not in value["error"]
    assert answers.all() == []
    assert client.post("/api/answers", good)[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[1]", {}, 400),
        (b"[" * 4000, {}, 400),
        (b"\xff", {}, 400),
        (b'{"name": NaN}', {}, 400),
        (b'{"name": 5}', {}, 400),
        (b'{"name": "' + b"x" * 100 + b'"}', {}, 400),
        (b" " * 5000, {}, 413),
        (b"{}", {"Content_Length": "99999999999"}, 411),
        (b"{}", {"Content_Length": "-1"}, 411),
        (b"{}", {"Content_Type": "text/plain"}, 415),
        (b"name=x", {"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_bodies_that_are_refused(client, answers, body, headers, status):
    headers = {"Content_Type": "application/json"} | headers
    found, _, answer = client.ask("POST", "/api/raters", body, **headers)
    assert found == status
    assert "error" in json.loads(answer)
    assert answers.raters() == []


def test_names_lose_what_cannot_be_shown(client, answers):
    client.join("  Zoë\u202e \n\x00 <b>\ud800 ")
    (rater,) = answers.raters()
    assert rater.name == "Zoë <b>?"


def test_a_page_of_another_name_is_refused(client):
    """Its name could be made to lead here."""
    for host, status in [
        ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("[::1", 403),
        ("localhost:x", 403), ("[evil]", 403), ("127.0.0.1@evil.example", 403),
        ("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:8520", 200),
    ]:  # fmt: skip
        assert client.ask("GET", "/api/study", Host=host)[0] == status, host


def test_a_full_disk_is_told_and_not_called_saved(client, answers):
    key = client.join()
    good = {"rater": key, "clip": first_clip(client, key), "scale": "overall", "score": 5}
    answers._database.execute("PRAGMA query_only = ON")
    status, value = client.post("/api/answers", good | {"heard": 1})
    assert status == 503
    assert "cannot write" in value["error"]
    answers._database.execute("PRAGMA query_only = OFF")
    assert client.post("/api/answers", good | {"heard": 1})[0] == 200


# --- Tokens and addresses ---------------------------------------------------------------------


def test_without_the_token_only_the_page_is_open(made, guarded):
    assert guarded.ask("GET", "/")[0] == 200
    assert guarded.get("/api/study")["token"] is True
    clip = made[0].items[0].clips[0].file
    for method, path in [("GET", f"/clips/{clip}"), ("GET", "/api/raters/x")]:
        assert guarded.ask(method, path)[0] == 401
    assert guarded.post("/api/raters", {})[0] == 401
    assert guarded.post("/api/answers", {})[0] == 401
    for wrong in ("", "a long secret wore", None, 5, "ä", "\ud800"):
        assert guarded.post("/api/enter", {"token": wrong})[0] == 403


def test_the_token_becomes_a_cookie(made, guarded):
    body = json.dumps({"token": TOKEN}).encode()
    status, headers, _ = guarded.ask("POST", "/api/enter", body, Content_Type="application/json")
    assert status == 200
    cookie, *limits = headers["Set-Cookie"].split("; ")
    assert TOKEN not in cookie
    assert set(limits) == {"Path=/", "HttpOnly", "SameSite=Strict"}
    inside = Client(guarded.port, Cookie=f"other=1; {cookie}")
    assert inside.ask("GET", f"/clips/{first_clip(inside, inside.join())}")[0] == 200
    assert Client(guarded.port, Cookie=cookie[:-1] + "x").post("/api/raters", {})[0] == 401


def test_other_addresses_need_a_token(made, answers):
    with pytest.raises(UserError, match="needs a token"):
        StudyServer(*made, answers, host="0.0.0.0")
    with pytest.raises(UserError, match="too short"):
        StudyServer(*made, answers, host="0.0.0.0", token="short")


def test_a_port_in_use_and_other_bad_addresses(made, answers):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use"):
            StudyServer(*made, answers, port=port)
    with pytest.raises(UserError, match="0 to 65535"):
        StudyServer(*made, answers, port=70_000)
    with pytest.raises(UserError, match="cannot listen on"):
        StudyServer(*made, answers, host="host.invalid", token=TOKEN)


def test_idle_connections_are_bounded(made, answers, monkeypatch):
    monkeypatch.setattr(web, "_MAX_CONNECTIONS", 2)
    server, stop = started(made, answers)
    client = Client(server.server_port)
    with contextlib.ExitStack() as idle:
        for _ in range(2):
            idle.enter_context(socket.create_connection(("127.0.0.1", server.server_port)))
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            client.get("/api/study")
    deadline = time.monotonic() + 10
    while True:  # the server sees that they hung up
        try:
            assert client.get("/api/study")["token"] is False
            break
        except (ConnectionError, http.client.HTTPException):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    stop()


# --- Nothing is lost --------------------------------------------------------------------------

RATERS = 20


def rate_everything(port, number, confirmed):
    """One rater: a score for every clip and question, repeated until the server confirms it."""
    client, rng = Client(port), random.Random(number)

    def insist(question):
        while True:
            try:
                return question()
            except OSError:  # nobody there, or cut off in the middle
                time.sleep(0.05)
            except Exception as error:
                if "RemoteDisconnected" not in repr(error) and "IncompleteRead" not in repr(error):
                    raise
                time.sleep(0.05)

    key = insist(lambda: client.join(f"rater {number}"))
    for item in insist(lambda: client.get(f"/api/raters/{key}"))["items"]:
        for clip in item["clips"]:
            for scale in item["scales"]:
                score = {"clip": clip["clip"], "scale": scale, "score": rng.randint(1, 100)}
                sent = {"rater": key, **score, "heard": 1}
                status, value = insist(lambda sent=sent: client.post("/api/answers", sent))
                assert (status, value) == (200, {"saved": True})
                confirmed[key, score["clip"], scale] = score["score"]


def test_twenty_raters_lose_nothing_when_the_server_is_killed(made):
    found, folder = made
    process = Process(folder)
    port, confirmed, failures = process.port, {}, []

    def work(number):
        try:
            rate_everything(port, number, confirmed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(RATERS)]
    for thread in threads:
        thread.start()
    each = sum(len(item.clips) * len(item.scales) for item in found.items)
    for share in (0.2, 0.5, 0.8):
        while len(confirmed) < share * RATERS * each and not failures:
            time.sleep(0.01)
        process.kill()
        before = dict(confirmed)
        with Answers(folder, found, create=False) as store:  # as the dead left it
            keys = {rater.number: rater.key for rater in store.raters()}
            written = {(keys[a.rater], a.clip, a.scale): a.score for a in store.all()}
        assert before.items() <= written.items()
        process = Process(folder, port=port)
    for thread in threads:
        thread.join(timeout=120)
    process.kill()
    assert not failures
    assert len(confirmed) == RATERS * each
    with Answers(folder, found, create=False) as store:
        keys = {rater.number: rater.key for rater in store.raters()}
        written = {(keys[a.rater], a.clip, a.scale): a.score for a in store.all()}
    assert confirmed == written


def test_ctrl_c_ends_the_command_in_peace(made):
    process = Process(made[1])
    process.process.send_signal(signal.SIGINT)
    out, err = process.process.communicate(timeout=20)
    assert process.process.returncode == 0
    assert "listen --analyse" in out
    assert err == ""


def test_the_command_says_where_to_go_and_wants_a_token(made, monkeypatch):
    monkeypatch.setenv("MUSICGEN_JAX_TOKEN", TOKEN)
    with serving(made[1], "--host", "0.0.0.0") as process:
        assert process.url.endswith("/#token=a%20long%20secret%20word")
        assert Client(process.port).post("/api/raters", {})[0] == 401
