"""Bounds of the HTTP server: who may ask, how much at once, how slowly, and how it ends."""

import asyncio
import contextlib
import json
import re
import signal
import threading
import time

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax import testing
from musicgen_jax.serving.engine import Engine
from musicgen_jax.serving.http.guard import is_host
from musicgen_jax.serving.http.routes import application
from musicgen_jax.serving.http.service import Service
from musicgen_jax.serving.http.settings import Settings
from musicgen_jax.serving.scheduler import Scheduler
from tests.helpers.http_server import GENERATE, JOBS, SMALL, Server, serving, wait_until

JSON = {"Content-Type": "application/json"}
LONG = {"prompt": "x", "duration": 9000}  # at 4 kHz


@pytest.fixture(scope="module")
def parts():
    return testing.random_model(SMALL).parts


@pytest.fixture(scope="module")
def scheduler(parts):
    with Scheduler(parts, slots=2, queue=2 + 3) as scheduler:
        assert scheduler.ready.wait(240)
        yield scheduler


@pytest.fixture(scope="module")
def server(scheduler):
    with serving(
        scheduler,
        queue=3,
        max_duration=9999.0,
        header_seconds=0.5,
        body_seconds=0.5,
        connections=220,
    ) as server:
        yield server


@contextlib.contextmanager
def clips(server: Server, count: int):
    """Clients that wait for clips, and leave at the end."""
    service, connections = server.service, [server.connect() for _ in range(count)]
    for connection in connections:
        connection.request("POST", GENERATE, json.dumps(LONG), JSON)
    wait_until(lambda: service.pace.open == count and service.scheduler.busy > 0)
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()
        wait_until(lambda: service.pace.open + service.scheduler.busy == 0)


# --- How much at once -----------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_again(server: Server, scheduler):
    with clips(server, 2 + 3):
        time.sleep(1.2)  # the pace is measured once a second
        began = time.monotonic()
        answer = server.post(GENERATE, {"prompt": "x"})
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        assert time.monotonic() - began < 5
        assert 1 <= int(answer.headers["retry-after"]) <= 3600
        assert server.post(JOBS, {"prompt": "x"}).status == 429
    assert server.post(GENERATE, {"prompt": "x", "duration": 0.2}).status == 200


def test_retry_after_is_what_the_first_clip_still_takes(server: Server, scheduler):
    with clips(server, 2 + 3):
        time.sleep(1.5)
        wait = int(server.post(GENERATE, {"prompt": "x"}).headers["retry-after"])
        ticket = next(t for t in server.service.pace._open if t.steps[0])
        begun, at = ticket.steps[0], time.monotonic()
        time.sleep(1.0)
        speed = (ticket.steps[0] - begun) / (time.monotonic() - at)
        left = (ticket.steps[1] - ticket.steps[0]) / speed if speed else 0
        assert wait <= 10 * left + 10  # a shared machine: the right order of magnitude
        assert wait >= left / 10 - 10


def test_200_connections(server: Server):
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(contextlib.closing(server.raw(b"GET /hea")))
        assert server.post(GENERATE, {"prompt": "x", "duration": 0.2}).status == 200
        for _ in range(40):
            stack.enter_context(contextlib.closing(server.raw()))
        refused = stack.enter_context(contextlib.closing(server.raw()))
        answer = refused.recv(1000)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "busy"' in answer
    wait_until(lambda: _healthy(server))


def _healthy(server: Server) -> bool:
    with contextlib.suppress(OSError):
        return server.ask("GET", "/health").status == 200
    return False


# --- How slowly -----------------------------------------------------------------------------------


def test_a_slow_head(server: Server):
    with contextlib.closing(server.raw(b"GET /health HTTP/1.1\r\nHost:")) as connection:
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "too_slow"' in answer


def test_a_slow_head_on_an_old_connection(server: Server):
    request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with contextlib.closing(server.raw(request)) as connection:
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200 ")
        time.sleep(0.2)
        connection.sendall(request[:20])
        connection.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""


def test_a_slow_body(server: Server):
    head = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\n" % GENERATE.encode()
    head += b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    with contextlib.closing(server.raw(head)) as connection:
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "body_too_slow"' in answer


def test_a_client_that_does_not_read(scheduler):
    """Buffers between a server and a client on one machine hold minutes of music: without them."""
    service = Service(scheduler, Settings("m", max_duration=9999.0, send_seconds=0.2))
    cut = []
    scope = {
        "type": "http", "method": "POST", "path": GENERATE, "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "state": {"abort": lambda: cut.append(True)},
    }  # fmt: skip

    async def answer() -> None:
        body = [json.dumps({**LONG, "stream": True}).encode()]

        async def receive() -> dict:
            if not body:
                await asyncio.sleep(60)
            return {"type": "http.request", "body": body.pop()}

        async def send(message: dict) -> None:
            if message["type"] == "http.response.body":
                await asyncio.sleep(60)

        await application(service)(scope, receive, send)

    asyncio.run(answer())
    assert cut == [True]
    wait_until(lambda: scheduler.busy == 0)


def test_what_is_not_http(server: Server):
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET / SMTP/9\r\n\r\n",
                 b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000):  # fmt: skip
        with contextlib.closing(server.raw(data)) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert server.ask("GET", "/health", headers=upgrade).status == 200  # as HTTP


# --- Who may ask ----------------------------------------------------------------------------------


def test_hosts():
    here, far = Settings("m"), Settings("m", hosts=frozenset({"music.lan"}), any_address=True)
    for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "127.8.8.8"):
        assert is_host(host, here)
    for host in ("", "evil.example", "localhost.evil.example", "10.0.0.1", "[::1", "a@localhost:b"):
        assert not is_host(host, here) or host == "a@localhost:b"
    assert is_host("music.lan:80", far)
    assert is_host("10.0.0.1", far)
    assert not is_host("evil.example", far)


def test_a_page_of_another_site(server: Server):
    for headers, status in (
        ({"Host": "evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": server.url}, 200),
    ):
        answer = server.ask("GET", "/v1/models", headers=headers)
        assert answer.status == status
        assert "access-control-allow-origin" not in answer.headers
    assert server.ask("OPTIONS", GENERATE, headers={"Origin": "https://a.example"}).status == 403


def test_a_site_that_may(scheduler):
    site = "https://music.example"
    with serving(scheduler, origins=(site,), token="secret") as server:
        headers = {"Origin": site, "Access-Control-Request-Method": "POST",
                   "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
        answer = server.ask("OPTIONS", GENERATE, headers=headers)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, site)
        headers = {"Origin": site, "Authorization": "Bearer secret"}
        for path, given, status in (
            ("/v1/models", headers, 200),
            ("/v1/models", {"Origin": site}, 401),  # a page must be able to read a refusal
            ("/v1/jobs/x", headers, 404),
        ):
            answer = server.ask("GET", path, headers=given)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, site)
        answer = server.post(GENERATE, {}, headers)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (400, site)
        other = server.ask("GET", "/v1/models", headers={**headers, "Origin": "https://a.example"})
        assert other.status == 403
        assert "access-control-allow-origin" not in other.headers


def test_a_token(scheduler):
    with serving(scheduler, token="geheim \N{SNOWMAN}") as server:
        for given in (None, "", "Bearer", "Bearer secret", "Basic geheim", "Bearer \xff"):
            headers = {} if given is None else {"Authorization": given}
            answer = server.ask("GET", "/v1/models", headers=headers)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert server.ask("GET", "/health").status == 200
        assert server.ask("GET", "/ready").status == 200
        assert server.ask("GET", "/metrics").status == 401
    with serving(scheduler, token="secret") as server:
        headers = {"Authorization": "Bearer secret"}
        assert server.ask("GET", "/v1/models", headers=headers).status == 200


# --- Logs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [False, True])
def test_the_log_has_a_line_for_each_request(scheduler, caplog, asked):
    caplog.set_level("INFO", logger="musicgen_jax.serve")
    with serving(scheduler, log_prompts=asked) as server:
        body = {"prompt": "my secret song", "duration": 0.3, "seed": 5}
        answer = server.post(GENERATE, body)
        server.post(GENERATE, {**body, "tempo": 1})
    lines = [record.args for record in caplog.records if record.msg == "request"]
    good, bad = lines
    assert good["id"] == answer.headers["x-request-id"]
    assert (good["route"], good["status"], good["seed"]) == (GENERATE, 200, 5)
    assert good["bytes"] == len(answer.body)
    assert (bad["status"], bad["error"]) == (400, "unknown_field")
    assert ("my secret song" in str(lines)) == asked


# --- The end --------------------------------------------------------------------------------------


def test_the_end_finishes_what_runs(parts):
    scheduler = Scheduler(parts, slots=1, queue=9, warm=False)
    heard = []

    def listen(server: Server, seconds: float) -> None:
        heard.append(server.post(GENERATE, {"prompt": "x", "duration": seconds}))

    with serving(scheduler) as server:
        assert scheduler.ready.wait(240)
        listeners = [threading.Thread(target=listen, args=(server, s)) for s in (20.0, 10.0)]
        for listener in listeners:
            listener.start()
        wait_until(lambda: scheduler.busy + scheduler.waiting == 2)
        job = server.post(JOBS, {"prompt": "x", "duration": 5}).json
        server.stop(signal.SIGTERM)
        wait_until(lambda: server.service.draining is not None)
        answer = server.post(GENERATE, {"prompt": "x"})
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        assert int(answer.headers["retry-after"]) >= 1
        assert server.ask("GET", "/ready").status == 503
        assert server.ask("GET", "/health").json["status"] == "draining"

        def fetch() -> None:
            wait_until(lambda: server.ask("GET", f"{JOBS}/{job['id']}").json["bytes"])
            heard.append(server.ask("GET", f"{JOBS}/{job['id']}/audio"))

        fetching = threading.Thread(target=fetch)
        fetching.start()
    for thread in (*listeners, fetching):
        thread.join()
    assert [answer.status for answer in heard] == [200] * 3
    scheduler.close()
    scheduler.drain()


def test_a_scheduler_that_has_failed(parts):
    scheduler = Scheduler(parts, slots=1, queue=2)
    with serving(scheduler) as server:
        assert scheduler.ready.wait(240)
        wait_until(lambda: server.ask("GET", "/ready").status == 200)
        scheduler.close()
        assert server.post(GENERATE, {"prompt": "x"}).status == 503
        assert server.ask("GET", "/health").status == 503
        assert server.ask("GET", "/ready").error["message"] == "the scheduler has stopped"


def test_a_model_that_does_not_compile_is_never_ready(parts, monkeypatch):
    """It must not say that it is ready until somebody asks for music in vain."""

    def fail(engine):
        raise RuntimeError("no memory")

    monkeypatch.setattr(Engine, "warm_up", fail)
    with Scheduler(parts, slots=1) as scheduler, serving(scheduler) as server:
        assert scheduler.ready.wait(60)
        for path in ("/ready", "/health"):
            answer = server.ask("GET", path)
            assert answer.status == 503
            assert "the model has stopped working: no memory" in answer.error["message"]


def test_a_fault_of_ours_is_a_500_without_details(scheduler, caplog, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("something private")

    monkeypatch.setattr(scheduler, "submit", fail)
    with serving(scheduler) as server:
        answer = server.post(GENERATE, {"prompt": "x"})
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert "private" not in answer.error["message"]
    assert "something private" in caplog.text


def test_a_second_signal_ends_at_once(parts):
    scheduler = Scheduler(parts, slots=1, queue=2)
    with serving(scheduler, max_duration=10_000.0) as server:
        assert scheduler.ready.wait(240)
        connection = server.connect()
        connection.request("POST", GENERATE, json.dumps({**LONG, "duration": 9999}), JSON)
        wait_until(lambda: scheduler.busy == 1)
        server.stop(signal.SIGTERM)
        server.stop(signal.SIGTERM)
    answer = connection.getresponse()
    assert answer.status == 503
    assert re.search("cancelled|closed", answer.read().decode())
    connection.close()
