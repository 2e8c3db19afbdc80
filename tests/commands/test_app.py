"""`musicgen-jax app`: what it refuses before it loads anything, and what it says about models."""

import socket

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from musicgen_jax.commands import app, cli
from musicgen_jax.storage import hub

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


def test_the_licence_of_a_model_is_told(tmp_path):
    from musicgen_jax.convert.pipeline import LICENSE

    nano = app._about(hub.find_model("nano"), "nano")
    assert nano.licence == "MIT licence"
    assert "MIT" in nano.terms
    assert nano.examples
    (tmp_path / "LICENSE").write_text(LICENSE)
    assert "CC-BY-NC" in app._about(tmp_path, "musicgen-small").licence
    (tmp_path / "LICENSE").write_text("Ask my grandmother first.")
    own = app._about(tmp_path, "mine")
    assert own.terms == "Ask my grandmother first."
    assert "below" in own.licence
