"""`evaluate --model` and `batch` in two processes that share one model."""

import csv

import numpy as np
import pytest

from musicgen_jax import audio, testing
from musicgen_jax.commands import cli
from tests.helpers import shallow
from tests.helpers.several_processes import run_together

CAPTIONS = {"a": "a calm waltz", "b": "drums", "c": " ".join(["bells"] * 80), "d": "a jig"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model, captions, and a clip for each."""
    folder = tmp_path_factory.mktemp("hosts")
    testing.save_random_model(folder / "model", shallow.TEXT)
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "caption"], *CAPTIONS.items()])
    for i, name in enumerate(CAPTIONS):
        noise = np.random.default_rng(i).normal(0, 0.1, (1, 4000)).astype(np.float32)
        audio.write(folder / f"real/{name}.wav", noise, 4000)
    return folder


def evaluate(root, out, *more):
    words = ["evaluate", "--model", root / "model", "--captions", root / "captions.csv"]
    words += ["--reference", root / "real", "--metrics", "fad", "--embedding", "encodec"]
    words += ["--codec", root / "model", "--duration", "0.5", "--slots", "2", "--out", out, *more]
    return [str(word) for word in words]


def together(words, folder):
    def command(address, i):
        place = ["--coordinator", address, "--num-processes", "2", "--process-id", str(i)]
        return ["-m", "musicgen_jax", *words, *place]

    return run_together(command, folder)


def clips(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.wav")}


@pytest.mark.slow
def test_two_processes_make_and_measure_what_one_does(root, tmp_path, capsys):
    assert cli.main(evaluate(root, tmp_path / "one")) == 0
    alone = clips(tmp_path / "one/clips")
    words = evaluate(root, tmp_path / "two", "--devices", "2x2")
    ended = together(words, tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    made = clips(tmp_path / "two/clips")
    assert made == alone
    assert "fad:" in ended[0][1]
    assert "fad:" not in ended[1][1]
    assert (tmp_path / "two/report.json").is_file()

    settings = (tmp_path / "two/clips/settings.json").read_bytes()
    assert settings == (tmp_path / "one/clips/settings.json").read_bytes()

    # What is there is not made again, and what is missing is.
    kept = tmp_path / "two/clips/000000.wav"
    before = kept.stat().st_mtime_ns
    (tmp_path / "two/clips/000003.wav").unlink()
    ended = together(words, tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    assert kept.stat().st_mtime_ns == before
    assert clips(tmp_path / "two/clips") == alone


@pytest.mark.slow
def test_a_batch_of_two_processes(root, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a calm waltz\ndrums\na jig\n")
    words = ["batch", tmp_path / "prompts.txt", "--model", root / "model", "--duration", "0.5"]
    words = [str(word) for word in [*words, "--slots", "2"]]
    assert cli.main([*words, str(tmp_path / "one")]) == 0
    ended = together([*words, str(tmp_path / "two"), "--devices", "1x4"], tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    assert "(3 of 3)" in ended[0][1]
    assert "wrote" not in ended[1][1]
    alone, made = (
        [audio.read(tmp_path / folder / f"00000{i}.wav")[0] for i in range(3)]
        for folder in ("one", "two")
    )
    for ours, theirs in zip(made, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_what_one_process_cannot_do_all_say(root, tmp_path):
    words = evaluate(root, tmp_path / "out", "--devices", "2x1")
    for code, log in together(words, tmp_path):
        assert (code, log.count("musicgen-jax: error:")) == (2, 1), log
        assert "--devices 2x1 leaves out some of the 4 devices of 2 processes" in log
    (tmp_path / "empty").mkdir()
    words = evaluate(root, tmp_path / "out", "--devices", "2x2", "--reference", tmp_path / "empty")
    for code, log in together(words, tmp_path):
        assert (code, log.count("musicgen-jax: error:")) == (2, 1), log
        assert "contains no audio files" in log


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--coordinator", "host:1"], "--coordinator needs --num-processes N and --process-id I"),
        (["--coordinator", "host", "--num-processes", "2", "--process-id", "0"], "HOST:PORT"),
        (["--coordinator", "host:1", "--num-processes", "2", "--process-id", "2"], "from 0 to 1"),
        (["--distributed", "--worker", "1/2"], "cannot be combined with --ray or --worker"),
    ],
)
def test_refused_at_once(root, tmp_path, capsys, more, message):
    assert cli.main(evaluate(root, tmp_path / "out", "--devices", "2x2", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_devices_must_be_named(root, tmp_path, capsys):
    assert cli.main(evaluate(root, tmp_path / "out", "--distributed")) == 2
    assert "several processes need --devices DATAxMODEL" in capsys.readouterr().err


def test_clips_of_a_folder_need_one_process(root, tmp_path, capsys):
    words = ["evaluate", "--audio", root / "real", "--captions", root / "captions.csv"]
    words = [str(word) for word in [*words, "--distributed", "--devices", "2x2"]]
    assert cli.main(words) == 2
    assert "can only share the work of a --model" in capsys.readouterr().err
