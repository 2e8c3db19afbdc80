"""`musicgen-jax serve` as a process on loopback: its messages, its signals, its end under load."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax import testing
from musicgen_jax.commands import cli
from tests.helpers.http_server import GENERATE, JOBS, SMALL, wait_until

READY_SECONDS = 240.0


class Process:
    """A server that has been started; `ask` talks to it."""

    def __init__(self, model: Path, *options: str, home: Path):
        command = [sys.executable, "-m", "musicgen_jax", "serve", "--model", str(model),
                   "--port", "0", *options]  # fmt: skip
        env = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        assert self.process.stderr is not None
        before, match = [], None
        for line in self.process.stderr:  # plugins of XLA may have something to say first
            if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
            before.append(line)
        assert match, "".join(before)
        self.said = [line]
        self.port = int(match[1])
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr or []))
        self._reader.start()

    def ask(self, method: str, path: str, body=None, headers=None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            sent = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, body and json.dumps(body), sent)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def wait_until_ready(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while self.ask("GET", "/ready")[0] != 200:
            assert time.monotonic() < end
            assert self.process.poll() is None
            time.sleep(0.1)

    def end(self) -> int:
        code = self.process.wait(60)
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code

    def log(self) -> list[dict]:
        return [json.loads(line) for line in self.said[1:]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model on disk."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    testing.save_random_model(folder, SMALL)
    return folder


@pytest.fixture
def start(model, tmp_path):
    """Starts servers, and ends those that a failed test leaves."""
    started = []

    def begin(*options: str, at: Path = model) -> Process:
        started.append(Process(at, *options, home=tmp_path))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.end()


def test_sigterm_under_load(start, model, tmp_path):
    """New requests are told to go elsewhere, what runs is finished, the code is 0."""
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    server = start("--slots", "2", "--max-duration", "4000", at=copy)
    assert "2 slots" in server.said[0]
    server.wait_until_ready()
    shutil.rmtree(copy)  # it is in memory
    clip = {"prompt": "a waltz", "duration": 20, "seed": 1, "response_format": "pcm"}
    alone = server.ask("POST", GENERATE, clip)
    assert (alone[0], len(alone[1])) == (200, 160_000)
    heard: dict[int, tuple[int, bytes]] = {}

    def listen(i: int) -> None:
        duration = 20 if i % 2 else 30
        heard[i] = server.ask("POST", GENERATE, {**clip, "duration": duration, "stream": i < 4})

    listeners = [threading.Thread(target=listen, args=(i,)) for i in range(8)]
    for listener in listeners:
        listener.start()
    wait_until(lambda: b"in_flight 9.0" in server.ask("GET", "/metrics")[1])
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.ask("GET", "/ready")[0] == 503)
    status, answer = server.ask("POST", GENERATE, clip)
    assert (status, json.loads(answer)["error"]["code"]) == (503, "shutting_down")
    for listener in listeners:
        listener.join(120)
    assert server.end() == 0
    assert {status for status, _ in heard.values()} == {200}
    assert all(audio == alone[1] for i, (_, audio) in heard.items() if i % 2)
    assert len({audio for i, (_, audio) in heard.items() if i % 2 == 0}) == 1
    log = server.log()
    assert {"draining"} <= {line["event"] for line in log}
    assert all("prompt" not in line and line["time"] for line in log)
    assert os.listdir(tmp_path) == []


def test_kill_9_leaves_nothing(start, tmp_path):
    server = start("--slots", "1", "--max-job-duration", "4000")
    server.wait_until_ready()
    assert server.ask("POST", JOBS, {"prompt": "x", "duration": 4000})[0] == 202
    server.process.kill()
    assert server.end() == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


def test_a_signal_before_it_is_ready(start):
    server = start("--slots", "2")
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 0


WRONG = [
    (["--host", "0.0.0.0"], "can be reached from other machines: give a --token"),
    (["--host", "nowhere.invalid"], "cannot listen on nowhere.invalid"),
    (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
    (["--slots", "0"], "--slots must be at least 1, got 0"),
    (["--slots", "x"], "invalid int value: 'x'"),
    (["--queue", "0"], "--queue must be at least 1, got 0"),
    (["--max-duration", "nan"], "--max-duration must be more than 0"),
    (["--max-duration", "1e9"], "--max-duration must be more than 0 and at most 86400"),
    (["--token", " "], "--token is empty"),
    (["--model", "/nowhere"], "/nowhere"),
    (["--slots", "1000", "--max-job-duration", "80000", "--queue", "100000"], "the slots need"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_refused_at_start(options, message, model, capsys, monkeypatch):
    monkeypatch.delenv("MUSICGEN_JAX_TOKEN", raising=False)
    arguments = ["serve", "--model", str(model), "--port", "0", *options]
    try:
        code = cli.main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_token_of_spaces_is_none(model, capsys, monkeypatch):
    monkeypatch.setenv("MUSICGEN_JAX_TOKEN", " \n")
    arguments = ["serve", "--model", str(model), "--port", "0", "--host", "0.0.0.0"]
    assert cli.main(arguments) == 2
    assert "give a --token" in capsys.readouterr().err


def test_a_port_that_is_taken(model, capsys):
    from musicgen_jax.serving.http.run import bind

    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--model", str(model), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_without_the_extra(capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "uvicorn" else find(name, *a)
    )
    assert cli.main(["serve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("serve needs uvicorn: pip install 'musicgen-jax[serve]'")
