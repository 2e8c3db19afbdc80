"""`generate --play`: raw PCM to whatever player is there."""

import sys

import pytest

from musicgen_jax import testing
from musicgen_jax.commands.cli import main
from tests.helpers import shallow

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the players are scripts")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path, shallow.TEXT)
    return path


def play(model) -> int:
    return main(["generate", "x", "--play", "--model", str(model), "--duration", "0.5", "-q"])


def test_the_player_gets_the_samples_of_the_stream(model, tmp_path, monkeypatch):
    player, heard, stream = tmp_path / "aplay", tmp_path / "heard", tmp_path / "stream"
    player.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexec /bin/cat > {heard}\n')
    player.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert play(model) == 0
    options = ["--model", str(model), "--duration", "0.5", "--stream", str(stream)]
    assert main(["generate", "x", *options]) == 0
    assert heard.read_bytes() == stream.read_bytes()
    assert "-r 4000 -c 1" in (tmp_path / "asked").read_text()
    player.write_text("#!/bin/sh\nexec /bin/false\n")
    assert play(model) == 2


def test_no_player(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert play(model) == 2
    assert "found none of aplay, pacat, play, ffplay" in capsys.readouterr().err
    assert main(["generate", "x", "--play", "--stream", "-"]) == 2
