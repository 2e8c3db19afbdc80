"""Long pieces and streams from the command line: cut off by force, piped, refused."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicgen_jax import audio, testing
from musicgen_jax.commands import output
from musicgen_jax.commands.cli import main
from musicgen_jax.model import MusicGen
from tests.helpers import shallow

SHORT = dataclasses.replace(shallow.TEXT, max_duration=1.0, name="short")
SETTINGS = ("--duration", "6", "--seed", "3", "--join", "crossfade")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "short"
    testing.save_random_model(path, SHORT)
    return path


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "long.wav"
    assert main(["generate", "bells", "--model", str(folder), "-o", str(file), *SETTINGS]) == 0
    return file


def start(folder, *arguments, cwd=None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "musicgen_jax", "generate", "bells", "--model", str(folder)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    environment["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # as in this process
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, *arguments], stdout=pipe, stderr=pipe, env=environment, cwd=cwd
    )


def test_a_long_file(uninterrupted):
    samples, rate = soundfile.read(uninterrupted)
    assert rate == SHORT.sample_rate
    assert samples.shape == (6 * rate,)
    assert [entry.name for entry in uninterrupted.parent.iterdir()] == ["long.wav"]


def test_killed_and_resumed_is_the_same_file(folder, uninterrupted, tmp_path, capsys):
    file = tmp_path / "long.wav"
    partial = output.partial_folder(file)
    process = start(folder, "-o", str(file), *SETTINGS)
    try:
        deadline = time.monotonic() + 240
        while not (partial / "window-00002.npy").exists():
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not file.exists()
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("window-*.npy")}
    assert 3 <= len(done) < 10

    arguments = ["generate", "bells", "--model", str(folder), "-o", str(file), *SETTINGS]
    assert main(arguments) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--seed", "4"]) == 2
    assert "started with seed 3, not 4" in capsys.readouterr().err
    assert {name: (partial / name).stat().st_mtime_ns for name in done} == done

    assert main([*arguments, "--resume"]) == 0
    assert file.read_bytes() == uninterrupted.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["long.wav"]


def test_resume_with_nothing_there_begins(folder, uninterrupted, tmp_path, capsys):
    file = tmp_path / "long.wav"
    arguments = ["generate", "bells", "--model", str(folder), "-o", str(file), *SETTINGS]
    assert main([*arguments, "--resume"]) == 0
    assert "starting at the beginning" in capsys.readouterr().err
    assert file.read_bytes() == uninterrupted.read_bytes()


def test_what_is_not_ours_is_not_deleted(folder, tmp_path, capsys):
    file = tmp_path / "long.wav"
    partial = output.partial_folder(file)
    partial.mkdir()
    (partial / "diary.txt").write_text("mine")
    arguments = ["generate", "bells", "--model", str(folder), "-o", str(file), "--duration", "1.5"]
    assert main([*arguments, "--resume"]) == 2
    assert "'diary.txt', which musicgen-jax did not write" in capsys.readouterr().err
    assert [entry.name for entry in partial.iterdir()] == ["diary.txt"]


def test_several_long_clips_and_their_codes(folder, tmp_path, capsys):
    arguments = ["generate", "a", "b", "--model", str(folder), "-o", str(tmp_path / "x.flac")]
    assert main([*arguments, "--duration", "1.5", "--save-codes"]) == 0
    assert capsys.readouterr().out.count("(1.50 s)") == 2
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["x-0.flac", "x-0.npy", "x-1.flac", "x-1.npy"]
    assert np.load(tmp_path / "x-1.npy").shape == (4, 75)


def test_a_stream_to_a_pipe(folder, tmp_path):
    process = start(folder, "--duration", "1.5", "--stream", "-", cwd=tmp_path)
    raw, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert told.decode() == "raw PCM: s16le, 4000 Hz, 1 channel\n"
    wav = MusicGen.from_pretrained(folder).generate(["bells"], duration=1.5).audio[0]
    expected = np.frombuffer(output.to_pcm(wav), "<i2")
    streamed = np.frombuffer(raw, "<i2")
    assert streamed.shape == (6000,)
    assert np.abs(streamed.astype(int) - expected).max() <= 1
    assert np.abs(expected).max() > 1000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "--stream", "-"], "--stream is for one clip: give one PROMPT"),
        (["a", "--stream", "-", "--resume"], "--resume is for a file, and --stream writes none"),
        (["a", "--stream", "-", "--json"], "--json is for a file, and --stream writes none"),
        (["a", "--play", "--strategy", "rms"], "--strategy is for a file, and --play writes none"),
        (["a", "--play", "--stream", "-"], "--stream and --play cannot be combined"),
        (["a", "--stream", ""], "--stream needs the name of a file, got an empty one"),
        (["a", "--melody", ""], "--melody needs the name of a file, got an empty one"),
        (["a", "--schedule", ""], "--schedule needs the name of a file, got an empty one"),
        (["a", "--eval-q", "3"], "--eval-q only matters with --style FILE"),
        (["a", "--excerpt-length", "2"], "--excerpt-length only matters with --style FILE"),
        (["a", "--separate"], "error: --separate only matters with --melody FILE"),
        (["a", "--no-separate"], "error: --no-separate only matters with --melody FILE"),
        (["-", "a"], "- reads the prompts from stdin: give it alone, or leave it out"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(
    folder, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *arguments, "--model", str(folder)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--duration", "0"], "duration must be more than 0"),
        (["--top-k", "-1"], "top_k must be"),
        (["--melody", "tone.wav"], "takes no melody"),
    ],
)
def test_a_stream_that_cannot_begin_leaves_its_file_alone(
    folder, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    audio.write("tone.wav", np.full((1, 4000), 0.1, np.float32), 4000, "clip")
    Path("good.pcm").write_bytes(b"good")
    command = ["generate", "a", "--model", str(folder), *arguments]
    assert main([*command, "--stream", "good.pcm"]) == 2
    assert main([*command, "--stream", "new/new.pcm"]) == 2
    assert main(["generate", "a", "--model", str(folder), "--stream", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count(message) == 2
    assert err.count("it is a folder") == 1
    assert err.count("\n") == 3
    assert Path("good.pcm").read_bytes() == b"good"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["good.pcm", "tone.wav"]


def test_a_stream_to_a_file_in_a_new_folder(folder, tmp_path):
    file = tmp_path / "new" / "music.pcm"
    command = ["generate", "bells", "--model", str(folder), "--duration", "1.5"]
    assert main([*command, "--stream", str(file)]) == 0
    assert file.stat().st_size == 2 * 6000


def test_a_reader_that_goes_away_is_no_error(folder):
    process = start(folder, "--duration", "20", "--stream", "-")
    assert process.stdout is not None
    assert process.stderr is not None
    assert len(process.stdout.read(100)) == 100
    process.stdout.close()
    assert process.wait(timeout=240) == 0
    assert process.stderr.read().decode() == "raw PCM: s16le, 4000 Hz, 1 channel\n"
    process.stderr.close()


def test_pcm_is_little_endian_interleaved_and_cut():
    audio = np.array([[0.5, 2.0], [-0.5, -2.0]], np.float32)
    peak = round(10 ** (-1 / 20) * 2**15)
    assert np.frombuffer(output.to_pcm(audio), "<i2").tolist() == [16384, -16384, peak, -peak]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--stream", "-"], "--output is for a file, and --stream writes none"),
        (["a", "--duration", "nan"], "duration must be"),
        (["a", "--duration", "inf"], "duration must be"),
        (["a", "--duration", "1e6"], "at most 86400 seconds"),
        (["a", "--duration", "2", "--extend-stride", "1"], "extend_stride must be"),
        (["a", "--duration", "2", "--join", "soft"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, capsys, arguments, message):
    command = ["generate", *arguments, "--model", str(folder), "-o", str(tmp_path / "x.wav")]
    try:
        code = main(command)
    except SystemExit as caught:  # the parser's own
        code = caught.code
    assert code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
