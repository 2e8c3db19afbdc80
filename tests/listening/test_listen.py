"""`musicgen-jax listen` as a user types it: what it makes, prints and refuses."""

import json
import socket

import pytest

from musicgen_jax.commands import cli
from musicgen_jax.listening import order, study
from musicgen_jax.listening.answers import Answer, Answers
from tests.helpers.studies import make_captions, make_clips


@pytest.fixture
def run(capsys):
    """Runs the command: exit code, stdout, stderr."""

    def call(*words):
        try:
            code = cli.main(["listen", *map(str, words)])
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    make_captions(root)
    return root, [f"{name}={folder}" for name, folder in make_clips(root).items()]


def answer_everything(folder, raters):
    found = study.load(folder)
    likes = {"ours": 70, "other": 60, "reference": 95, "anchor": 20}
    with Answers(folder, found) as store:
        for _ in range(raters):
            rater = store.join("")
            for item in order.items_for(found, rater.number):
                for clip in item.clips:
                    for scale in item.scales:
                        score = likes[clip.system] + rater.number % 3
                        store.record(Answer(rater.number, clip.file, scale, score, 1.0, 1.7e9))


def test_a_study_from_folders_to_tables(clips, tmp_path, run):
    root, systems = clips
    words = ["--systems", *systems, "--captions", root / "captions.jsonl"]
    words += ["--out", tmp_path / "study", "--no-serve"]
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "2 pieces, 4 clips each (ours, other, reference, anchor), 2 pieces per rater" in out
    assert run(*words)[0] == 0  # again
    assert run("--out", tmp_path / "study", "--no-serve")[0] == 0
    code, _, err = run("--analyse", tmp_path / "study")
    assert code == 2
    assert "no answers yet" in err

    answer_everything(tmp_path / "study", raters=6)
    code, out, err = run("--analyse", tmp_path / "study")
    assert (code, err) == (0, "")
    assert out.startswith("system     OVL")
    names = {file.name for file in (tmp_path / "study" / "results").iterdir()}
    assert names == {"answers.csv", "results.json", "results.md", "results.svg"}
    code, out, _ = run("--analyse", tmp_path / "study", "--json", "--out", tmp_path / "elsewhere")
    results = json.loads(out)
    assert results == json.loads((tmp_path / "elsewhere" / "results.json").read_text())
    assert results["scales"]["overall"]["systems"]["ours"]["mean"] == 71


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the study's folder with --out"),
        (["--out", "OUT"], "holds no listening study"),
        (["--analyse", "OUT"], "holds no listening study"),
        (["--systems", "ours", "--out", "OUT"], "must be NAME=DIR, got 'ours'"),
        (["--systems", "a b=x", "--out", "OUT"], "letters, digits"),
        (["--systems", "ours=nowhere", "other=nowhere", "--out", "OUT"], "nowhere is not a folder"),
        (["--systems", "ours=CLIPS/ours", "--out", "OUT"], "one system cannot be compared"),
        (["--systems", "a=CLIPS/ours", "a=CLIPS/other", "--out", "OUT"], "two systems are called"),
        (["--systems", "a=CLIPS/ours", "anchor=CLIPS/other", "--out", "OUT"], "anchor is taken"),
        (["--systems", *(f"s{i}=CLIPS/ours" for i in range(13)), "--out", "OUT"], "at most 12"),
        (["--systems", "a=CLIPS/ours", "b=EMPTY", "--out", "OUT"], "contains no audio files"),
        (["--out", "OUT", "--must-hear", "1.5"], "must be a share from 0 to 1"),
        (["--out", "OUT", "--per-rater", "0"], "must be a whole number of at least 1"),
        (["--out", "OUT", "--seconds", "nan"], "must be from 1 to 600 seconds"),
        (["--out", "OUT", "--json"], "--json goes with --analyse"),
        (["--systems", "a=CLIPS/ours", "b=CLIPS/other", "--out", "OUT", "--seed", "-1"], "seed"),
        (["--systems", "a=CLIPS/ours", "b=CLIPS/other", "--out", "OUT", "--title", " "], "title"),
        (["--analyse", "OUT", "--systems", "a=CLIPS/ours"], "leave out --systems"),
    ],
)
def test_bad_input_is_one_line(words, message, clips, tmp_path, run):
    (tmp_path / "empty").mkdir()
    places = {"OUT": tmp_path / "out", "CLIPS": clips[0], "EMPTY": tmp_path / "empty"}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_serving_that_cannot_begin(clips, tmp_path, run, monkeypatch):
    monkeypatch.delenv("MUSICGEN_JAX_TOKEN", raising=False)
    folder = tmp_path / "study"
    assert run("--systems", *clips[1], "--out", folder, "--no-serve")[0] == 0
    code, _, err = run("--out", folder, "--host", "0.0.0.0")
    assert code == 2
    assert "add --token" in err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("--out", folder, "--port", port)
    assert code == 2
    assert err == (
        f"musicgen-jax: error: port {port} is in use: stop the program that uses it, "
        "or choose another with --port\n"
    )
