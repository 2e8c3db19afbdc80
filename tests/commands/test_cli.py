"""The command line: what it writes, and that it fails in one line before it works for long."""

import argparse
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from musicgen_jax import __version__, audio, testing
from musicgen_jax.commands import cli, endings, options
from musicgen_jax.errors import UserError
from musicgen_jax.model import MusicGen
from tests.helpers import shallow

RATE = testing.DEBUG.sample_rate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path, shallow.TEXT)
    return path


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=folder):
        words = [str(word) for word in arguments]
        if words[0] == "generate":
            words += ["--model", str(model)]
            if "--duration" not in words:
                words += ["--duration", "0.5"]
        try:
            code = cli.main(words)
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def no_model(monkeypatch):
    """Fails if a model is loaded: the mistake must be found before."""

    def from_pretrained(name, **_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(MusicGen, "from_pretrained", from_pretrained)


def check_refused(result, *words):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("musicgen-jax")
    for word in words:
        assert word in err
    assert os.listdir() == [] or set(os.listdir()) <= {"in.wav", "folder.wav"}


# --- What it writes -------------------------------------------------------------------------------


def test_writes_one_clip_at_the_loudness_and_says_so(run):
    code, out, err = run("generate", "a calm waltz", "--seed", 3)
    assert code == 0
    assert out == "wrote out.wav (0.50 s)\n"
    assert err == "", "a progress bar is for terminals"
    samples, rate = soundfile.read("out.wav", always_2d=True)
    assert rate == RATE
    assert samples.shape == (2000, 1)
    assert np.abs(samples).max() < 1
    # About -14 LUFS: this noise is far over full scale, which the measure clips.
    assert -16 < audio.loudness(samples.T, RATE) < -11
    assert os.listdir() == ["out.wav"]


def test_the_file_is_what_python_gives(run, folder):
    arguments = ["--top-k", 5, "--top-p", 0.9, "--temperature", 0.8, "--cfg-coef", 2, "--seed", 3]
    code, _, _ = run("generate", "bells", *arguments, "--save-codes", "--strategy", "peak")
    assert code == 0
    out = MusicGen.from_pretrained(folder).generate(
        ["bells"], duration=0.5, seed=3, top_k=5, top_p=0.9, temperature=0.8, cfg_coef=2
    )
    np.testing.assert_array_equal(np.load("out.npy"), out.codes[0])
    audio.write("expected.wav", out.audio[0], RATE, "peak")
    written, expected = (soundfile.read(f"{name}.wav")[0] for name in ("out", "expected"))
    np.testing.assert_allclose(written, expected, atol=2 / 2**15)


def test_several_prompts_are_numbered(run):
    code, out, _ = run("generate", "bells", "drums", "-o", "made/here/clip.flac", "--greedy")
    assert code == 0
    assert out.splitlines() == [f"wrote made/here/clip-{i}.flac (0.50 s)" for i in (0, 1)]
    assert soundfile.info("made/here/clip-1.flac").format == "FLAC"


def test_unconditional(run):
    assert run("generate", "--unconditional", 2)[0] == 0
    assert sorted(os.listdir()) == ["out-0.wav", "out-1.wav"]


def test_continues_a_file_of_another_rate_in_stereo(run):
    time = np.arange(4000) / 8000
    sides = np.stack([np.sin(2 * np.pi * 200 * time), np.cos(2 * np.pi * 200 * time)], axis=1)
    soundfile.write("in.wav", 0.3 * sides, 8000)
    code, out, _ = run("generate", "--continue-from", "in.wav", "--duration", 0.76)
    assert (code, out) == (0, "wrote out.wav (0.76 s)\n")


def parsers(parser, name="musicgen-jax"):
    """A parser and those of all of its sub-commands, by what one types."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield from parsers(command, f"{name} {word}")


PARSERS = dict(parsers(cli._parser()))


@pytest.mark.parametrize("name", PARSERS)
def test_help_tells_defaults_where_there_are_any(name):
    parser = PARSERS[name]
    text = " ".join(parser.format_help().split())
    for nothing in ("None", "False", "[]"):
        assert f"default: {nothing}" not in text
    for action in parser._actions:
        if action.option_strings and isinstance(action.default, int | float | str):
            told = isinstance(action.default, bool) or action.default == argparse.SUPPRESS
            told = told or f"(default: {action.default})" in text
            assert told or "default" in action.help, action.option_strings


def test_help_of_every_command_was_walked():
    assert {"musicgen-jax finetune", "musicgen-jax train codec"} < set(PARSERS)
    assert "(default: 0)" in PARSERS["musicgen-jax generate"].format_help()  # zero is a default


def test_module_is_the_command():
    command = [sys.executable, "-m", "musicgen_jax", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"musicgen-jax {__version__}\n"


# --- What it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND"]),
        (["play"], ["play"]),
        (["generate"], ["nothing to generate", "--unconditional"]),
        (["generate", "x", "--unconditional", "2"], ["--unconditional"]),
        (["generate", "--unconditional", "0"], ["from 1 to 1000, got 0"]),
        (["generate", "x", "--duration", "long"], ["--duration", "long"]),
        (["generate", "x", "--seed", "1.5"], ["--seed", "1.5"]),
        (["generate", "x", "--strategy", "max"], ["--strategy", "max"]),
        (["generate", "x", "-o", "out.aac"], [".mp3 or .ogg", "out.aac"]),
        (["generate", "x", "-o", "out"], [".mp3 or .ogg"]),
        (["generate", "x", "--continue-from", "no.wav"], ["no.wav"]),
        (["convert"], ["source"]),
    ],
)
def test_refused_before_a_model_is_loaded(run, no_model, monkeypatch, arguments, words):
    monkeypatch.setenv("COLUMNS", "500")
    if arguments[:1] == ["generate"]:
        check_refused(run(*arguments), *words)
        return
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--duration", 0], ["duration must be more than 0", "got 0"]),
        (["--duration", -3], ["duration must be more than 0"]),
        (["--duration", "nan"], ["duration must be more than 0", "got nan"]),
        (["--duration", 90000], ["at most 86400 seconds", "got 90000"]),
        (["--temperature", -1], ["temperature", "-1"]),
        (["--top-k", -1], ["top_k", "-1"]),
        (["--top-k", 100000], ["top_k", "100000"]),
        (["--top-p", 1.5], ["top_p", "1.5"]),
        (["--cfg-coef", "inf"], ["cfg_coef", "inf"]),
        (["--seed", -1], ["seed", "-1"]),
    ],
)
def test_refused_settings(run, arguments, words):
    check_refused(run("generate", "x", *arguments), *words)


def test_refused_models(run, tmp_path):
    check_refused(run("generate", "x", model="musicgen-tiny"), "musicgen-tiny", "nano")
    (tmp_path / "in.wav").mkdir()  # a folder, but no model
    check_refused(run("generate", "x", model=tmp_path / "in.wav"), "config.json")


def test_refused_prompt_audio(run):
    def refused(samples, *words, rate=RATE, **options):
        soundfile.write("in.wav", np.asarray(samples, np.float32), rate, **options)
        check_refused(run("generate", "x", "--continue-from", "in.wav"), *words)

    refused(np.full(4000, 0.1), "prompt lasts 1.00 s", "duration of 0.50 s")
    refused(np.zeros(400), "silent")
    refused([0.1, np.nan, 0.1], "NaN", subtype="FLOAT")
    with open("in.wav", "w") as file:
        file.write("la la la")
    check_refused(run("generate", "x", "--continue-from", "in.wav"), "in.wav", "not an audio file")


def test_unwritable_output_is_found_first(run, no_model, monkeypatch, tmp_path):
    (tmp_path / "folder.wav").mkdir()
    check_refused(run("generate", "x", "-o", "folder.wav"), "folder.wav", "folder")
    (tmp_path / "in.wav").write_text("a file where a folder should be")
    check_refused(run("generate", "x", "-o", "in.wav/out.wav"), "cannot write in.wav/out.wav")

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(options.tempfile, "TemporaryFile", refuse)
    check_refused(run("generate", "x", "-o", "sub/out.wav"), "Permission denied")


def test_protected_file_is_found_first(run, no_model, monkeypatch, tmp_path):
    (tmp_path / "in.wav").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    check_refused(run("generate", "x", "-o", "in.wav"), "write-protected")


def test_an_error_of_many_lines_becomes_one(run, monkeypatch):
    def from_pretrained(name, **_):
        raise UserError("first\n  second")

    monkeypatch.setattr(MusicGen, "from_pretrained", from_pretrained)
    assert run("generate", "x") == (2, "", "musicgen-jax: error: first second\n")


def test_convert_refuses_a_missing_source(run):
    check_refused(run("convert", "./missing", "converted"), "missing")


# --- Ctrl-C ---------------------------------------------------------------------------------------


def test_interrupt_during_generation_writes_nothing(folder, tmp_path):
    """A real signal to a real process, sent when the loop has begun."""
    code = f"""
import os, signal, sys
from musicgen_jax.commands import cli
from musicgen_jax.generation import windows
real = windows.stream_codes
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
def interrupted(*args, **kwargs):
    for codes in real(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        yield codes
windows.stream_codes = interrupted
sys.exit(cli.main(["generate", "x", "--model", {str(folder)!r}, "--duration", "0.5"]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == endings.INTERRUPTED == 128 + signal.SIGINT
    assert result.stderr == "musicgen-jax: interrupted\n"
    assert result.stdout == ""
    assert os.listdir(tmp_path) == []


def test_the_overview_fits_on_a_screen_and_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 25
    rows = [line.split("  ")[1] for line in lines if line.startswith("  ")]
    named = {name for row in rows for name in row.split(", ")}
    assert all(len(line) <= 100 for line in lines)
    parser = cli._parser()
    commands = next(a.choices for a in parser._actions if a.choices)
    assert set(commands) <= named


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["generate", "x", "--top-k", "5x"], "musicgen-jax generate"),
        (["train", "lm", "--steps", "5x"], "musicgen-jax train lm"),
    ],
)
def test_a_refusal_names_the_command_alone(arguments, name, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    error = capsys.readouterr().err
    assert error.startswith(f"{name}: error: ")
    assert error.rstrip().endswith(f"(see {name} --help)")


def test_nano_says_what_it_does_not_know(run, folder, monkeypatch):
    model = MusicGen.from_pretrained(folder)
    monkeypatch.setattr(MusicGen, "from_pretrained", lambda name, **_: model)
    code, _, err = run("generate", "slow death\x1b[1m metal", "calm piano", model="nano")
    assert (code, err) == (0, "nano heard in clip 0: slow; it does not know: death\\x1b[1m metal\n")
    code, out, err = run("generate", "polka", "--json", model="nano")
    assert json.loads(out)["heard"] == {"understood": [], "unknown": ["polka"]}
    assert err == "nano heard: nothing that it knows; it does not know: polka\n"
    for quiet in (("polka", "-q"), ("a slow waltz",), ("--unconditional", 1)):
        assert run("generate", *quiet, model="nano")[2] == ""


def test_another_model_says_nothing_about_the_prompt(run):
    code, out, err = run("generate", "polka", "--json")
    assert (code, err) == (0, "")
    assert "heard" not in json.loads(out)
