"""`musicgen-jax app`: what it refuses before it loads anything, and what it says about models."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax import testing
from musicgen_jax.commands import app, cli, models
from musicgen_jax.storage import hub
from tests.helpers.http_server import SMALL, wait_until

pytestmark = pytest.mark.extra


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port must be from 0 to 65535"),
        (["--slots", "0"], "--slots must be at least 1"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, words, capsys):
    assert cli.main(["app", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_taken_port_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["app", "--port", str(port)]) == 2
    assert "choose another --port" in capsys.readouterr().err


def test_the_licence_of_a_bundled_model_is_told():
    nano = app._about(hub.find_model("nano"), "nano")
    assert nano.licence == "MIT licence"
    assert "MIT" in nano.terms
    assert nano.examples
    assert "choose nano-melody" in nano.limits
    melody = app._about(hub.find_model("nano-melody"), "nano-melody")
    assert melody.limits.startswith("nano-melody knows")
    assert "whistle" in melody.limits


def test_both_bundled_models_say_what_they_understand():
    for name in ("nano", "nano-melody"):
        hear = models.hearing_of(name)
        assert hear is not None
        assert "does not know: death metal" in hear("slow death metal")
    assert models.hearing_of("musicgen-small") is None


def test_the_licence_of_another_model_is_told(tmp_path):
    from musicgen_jax.convert.pipeline import LICENSE

    (tmp_path / "LICENSE").write_text(LICENSE)
    assert "CC-BY-NC" in app._about(tmp_path, "musicgen-small").licence
    (tmp_path / "LICENSE").write_text("Ask my grandmother first.")
    own = app._about(tmp_path, "mine")
    assert own.terms == "Ask my grandmother first."
    assert "below" in own.licence


def test_only_nano_says_what_it_understood():
    hear = models.hearing_of("nano")
    assert hear("slow death metal") == "slow; it does not know: death metal"
    assert models.hearing_of("facebook/musicgen-small") is None


@contextlib.contextmanager
def running(folder, home):
    """`musicgen-jax app` as a process; its address, and the process."""
    command = [sys.executable, "-m", "musicgen_jax", "app", "--port", "0", "--no-open"]
    env = {**os.environ, "MUSICGEN_JAX_HOME": str(home)}
    process = subprocess.Popen(
        [*command, "--model", str(folder)], stdout=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None
    try:
        found = re.search(r"plays on http://(\S+)", process.stdout.readline())
        assert found
        yield urlsplit(f"//{found[1]}").netloc, process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(address, path, body=None):
    """The JSON of an answer; None while one server makes room for the next."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=120)) as connection:
        try:
            sent = None if body is None else json.dumps(body)
            method = "POST" if sent else "GET"
            connection.request(method, path, sent, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException):
            return None


def test_the_page_changes_the_model_and_a_broken_one_changes_nothing(tmp_path):
    first, home = tmp_path / "first", tmp_path / "home"
    testing.save_random_model(first, SMALL)
    shutil.copytree(first, home / "second")
    shutil.copytree(first, home / "broken")
    shutil.rmtree(home / "broken" / "lm")
    with running(first, home) as (address, process):
        about = ask(address, "/app/about")
        ready = {choice["name"]: choice["ready"] for choice in about["choices"]}
        assert {"first", "second", "nano"} <= {name for name in ready if ready[name]}
        assert not ready["facebook/musicgen-small"]
        assert ask(address, "/app/model", {"name": "second"}) == {"model": "second"}

        def plays(name, notice=""):
            told = ask(address, "/app/about")
            return told and told["model"] == name and notice in told["notice"]

        wait_until(lambda: plays("second"), seconds=120)
        assert ask(address, "/v1/models")["data"][0]["id"] == "second"
        assert ask(address, "/app/model", {"name": "broken"}) == {"model": "broken"}
        wait_until(lambda: plays("second", "broken cannot be loaded: "), seconds=120)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
