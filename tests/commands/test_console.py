"""What commands say: JSON alone, nothing at all, or bars on a terminal."""

import argparse
import io
import json
import os
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from musicgen_jax import audio, testing
from musicgen_jax.commands import cli
from musicgen_jax.config import toml
from musicgen_jax.console import Console
from tests.helpers import lm_runs, shallow
from tests.helpers.paths import GOLDENS
from tests.helpers.studies import make_clips

RATE = 4000
# Those that make nothing: they serve, tell, measure, remove, or print a script.
TELLING = {"serve", "app", "models", "info", "doctor", "bench", "cache", "completion"}


def parsers(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every command that runs, by its words."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        return {name.strip(): parser}
    return {
        words: found
        for word, child in nested[0].choices.items()
        for words, found in parsers(child, f"{name} {word}").items()
    }


def test_every_command_that_makes_something_has_json_and_quiet():
    for words, parser in parsers(cli._parser()).items():
        if words.split()[0] not in TELLING:
            options = parser._option_string_actions
            assert {"--json", "-q", "--quiet"} <= options.keys(), words


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """What the commands below are given."""
    place = tmp_path_factory.mktemp("place")
    testing.save_random_model(place / "model", shallow.TEXT)
    (place / "prompts.txt").write_text("bells\na calm waltz\n")
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).normal(0, 0.1, (1, RATE)).astype(np.float32)
        audio.write(place / f"music/{name}.wav", noise, RATE)
    words = ["codec", "encode", str(place / "music/a.wav"), str(place / "codes.npz"), "-q"]
    assert cli.main([*words, "--model", str(place / "model")]) == 0
    make_clips(place / "study-clips")
    (place / "tiny.toml").write_text(toml.dump(lm_runs.shorter(2)))
    return place


MODEL = "--model {0}/model"
FAST = {
    "generate": f"generate bells {MODEL} --duration 0.3 -o {{1}}/x.wav",
    "batch": f"batch {{0}}/prompts.txt {{1}}/clips {MODEL} --duration 0.3",
    "chroma": "chroma {0}/music/a.wav -o {1}/x.npy --no-separate",
    "codec encode": f"codec encode {{0}}/music/a.wav {{1}}/x.npz {MODEL}",
    "codec decode": f"codec decode {{0}}/codes.npz {{1}}/x.wav {MODEL}",
    "warmup": f"warmup {MODEL} --duration 0.3 --tokens 16",
    "export-torch": "export-torch {0}/model {1}/theirs",
    "convert": f"convert {GOLDENS}/mono/transformers {{1}}/ours",
    "train encode": f"train encode {{0}}/music {{1}}/codes {MODEL}",
    "evaluate": "evaluate --audio {0}/music --reference {0}/music --embedding encodec "
    "--codec {0}/model --metrics fad --cache {1}/features",
    "listen": "listen --systems ours={0}/study-clips/ours reference={0}/study-clips/reference "
    "--out {1}/study --no-serve",
}
SLOW = {
    "export": "export {0}/model {1}/exported --platforms cpu --duration 0.5",
    "train lm": "train lm {0}/tiny.toml --base {0}/model --data {0}/codes --run {1}/run",
    "train codec": "train codec debug --data {0}/music --run {1}/run --steps 1",
    "finetune": "finetune {0}/model {0}/codes --run {1}/run --steps 1 --batch-size 1 --seconds 0.3",
}
COMMANDS = [
    *(pytest.param(line, id=name) for name, line in FAST.items()),
    *(pytest.param(line, id=name, marks=pytest.mark.slow) for name, line in SLOW.items()),
]


def words_of(line: str, place: Path, out: Path) -> list[str]:
    """A command's words, after what it needs was made."""
    if "/codes --run" in line.format(place, out) and not (place / "codes").exists():
        words = ["train", "encode", str(place / "music"), str(place / "codes"), "-q"]
        assert cli.main([*words, "--model", str(place / "model")]) == 0
    return line.format(place, out).split()


@pytest.mark.parametrize("line", COMMANDS)
def test_json_has_stdout_for_itself(line, place, tmp_path, capsys):
    words = words_of(line, place, tmp_path)
    capsys.readouterr()
    assert cli.main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    try:
        made = [json.loads(out)]  # a report, on many lines
    except ValueError:
        made = [json.loads(each) for each in out.splitlines()]
    assert len(made) == (2 if words[0] == "batch" else 1)
    for name in ("file", "folder"):
        assert all(Path(each[name]).exists() for each in made if name in each)


@pytest.mark.parametrize("line", COMMANDS)
def test_quiet_says_nothing(line, place, tmp_path, capsys):
    words = words_of(line, place, tmp_path)
    capsys.readouterr()
    assert cli.main([*words, "-q"]) == 0
    assert capsys.readouterr() == ("", "")


# --- Bars -----------------------------------------------------------------------------------------


class Terminal:
    """A terminal of 100 columns, as a stream to write to; `text` is what it was sent."""

    def __enter__(self):
        import fcntl
        import struct
        import termios

        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.stream = open(theirs, "w", encoding="utf-8")
        self.text, self._received = "", b""
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        return self

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 1 << 16):
                self._received += data
        except OSError:  # how Linux says that the other end is closed
            pass

    def __exit__(self, *_):
        self.stream.close()
        self._reading.join()
        os.close(self._ours)
        self.text = self._received.decode()


BARS = {
    "batch": ("making", "2/2", "clip"),
    "train encode": ("encoding", "2/2", "clip"),
    "convert": ("converting", "100%", "B/s"),
    "warmup": ("compiling", "100%", "stage"),
    "listen": ("preparing", "2/2", "piece"),
}


@pytest.mark.parametrize("name", BARS)
def test_a_terminal_gets_a_bar_with_a_rate(name, place, tmp_path, capsys, monkeypatch):
    pytest.importorskip("fcntl")
    words = words_of(FAST[name], place, tmp_path)
    with Terminal() as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal.stream)
        assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert out
    assert "\r" not in out
    last = terminal.text.split("\r")[-1 if not terminal.text.endswith("\r\n") else -2]
    for part in BARS[name]:
        assert part in last
    assert "<00:00" in last  # the time left


def test_lines_and_a_bar_on_one_terminal_do_not_mix(monkeypatch):
    pytest.importorskip("fcntl")
    with Terminal() as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal.stream)
        patch.setattr("sys.stdout", terminal.stream)
        out = Console(json=True)
        for i in out.bar(range(3), total=3, desc="making"):
            out.say(f"line {i}")
            out.made("", number=i)
    # What stands on a line is what came after its last return.
    shown = [line.split("\r")[-1] for line in terminal.text.replace("\r\n", "\n").split("\n")]
    assert [line for line in shown if "making" not in line] == [
        text for i in range(3) for text in (f"line {i}", json.dumps({"number": i}))
    ] + [""]


@pytest.mark.parametrize("console", [Console(quiet=True), Console()], ids=["quiet", "no terminal"])
def test_there_is_no_bar_without_anybody_to_look_at_it(console, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    if console.quiet:
        monkeypatch.setattr(written, "isatty", lambda: True, raising=False)
    assert list(console.bar(iter("abc"), total=3, desc="making")) == ["a", "b", "c"]
    with console.counter("making", "B") as progress:
        progress(1, 3)
    assert written.getvalue() == ""


@pytest.mark.slow
def test_the_first_run_says_what_it_compiles_and_the_second_nothing(
    place, tmp_path, capsys, monkeypatch, nothing_cached
):
    pytest.importorskip("fcntl")
    monkeypatch.delenv("MUSICGEN_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = words_of(FAST["generate"], place, tmp_path)
    for expected in (1, 0):
        jax.clear_caches()
        with Terminal() as terminal, monkeypatch.context() as patch:
            patch.setattr("sys.stderr", terminal.stream)
            assert cli.main(words) == 0
        assert terminal.text.count("musicgen-jax: compiling for this model") == expected
    assert (tmp_path / "cache/musicgen-jax/compiled").is_dir()
