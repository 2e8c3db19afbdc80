"""`musicgen-jax evaluate --model`: a clip for each caption, whatever interrupts the work."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from musicgen_jax import audio, testing
from musicgen_jax.commands import batch_folder, cli
from musicgen_jax.model import MusicGen
from musicgen_jax.serving.scheduler import Scheduler
from musicgen_jax.serving.ticket import Ticket

RATE = 4000
MODEL = dataclasses.replace(
    testing.DEBUG,
    lm=dataclasses.replace(testing.DEBUG.lm, num_layers=1),
    t5=dataclasses.replace(testing.DEBUG.t5, num_layers=1),
    name="facebook/musicgen-small",
)
CAPTIONS = {
    "-0Gj8-vB1q4": "bells, quietly",
    "not-there": "a clip that nobody could download",
    "_0-2meOf9qY": "a calm waltz",
    "x": " ".join(["drums"] * 300),
    "y/z": 'a "fast" jig\non the flute',
}
PAIRED = ["-0Gj8-vB1q4", "_0-2meOf9qY", "x", "y/z"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path, MODEL)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """MusicCaps' columns, and clips for all captions but one; one clip has no caption."""
    root = tmp_path_factory.mktemp("data")
    with (root / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ytid", "start_s", "end_s", "aspect_list", "caption"])
        writer.writerows([name, 0, 10, "['a', 'b']", text] for name, text in CAPTIONS.items())
    for i, name in enumerate([*PAIRED, "without"]):
        noise = np.random.default_rng(i).normal(0, 0.1, (1, RATE)).astype(np.float32)
        audio.write(root / f"real/{name}.wav", noise, RATE)
    return root


def arguments(model, data, out, *more):
    words = ["evaluate", "--model", model, "--captions", data / "captions.csv", "--out", out]
    words += ["--reference", data / "real", "--embedding", "encodec", "--codec", model]
    words += ["--duration", "1", "--batch-size", "2", "--seed", "7", *more]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert cli.main(arguments(model, data, out)) == 0
    return out


def clips(out):
    return {path.name: path.read_bytes() for path in (out / "clips").glob("*.wav")}


def figures(out):
    """The report but for the folder that it names."""
    report = json.loads((out / "report.json").read_text())
    del report["audio"]["path"]
    return report


def test_a_report(whole, data, model):
    report = json.loads((whole / "report.json").read_text())
    assert sorted(clips(whole)) == ["000000.wav", "000002.wav", "000003.wav", "000004.wav"]
    assert [clip["id"] for clip in report["clips"]] == sorted(PAIRED)
    for result in report["metrics"].values():
        keys = {"value", "protocol", "embedding", "weights", "clips", "rows", "reference"}
        assert keys <= result.keys()
        assert result["clips"] == 4
        assert result["reference"] == report["reference"]["identity"]
    assert report["metrics"].keys() == {"fad", "kad", "chroma"}
    assert report["audio"]["skipped"] == [{"id": "not-there", "reason": "no clip in the reference"}]
    assert report["reference"]["skipped"] == [{"id": "without", "reason": "no caption"}]
    assert report["model"]["settings"]["seed"] == 7
    assert "needs 500 rows" in report["metrics"]["fad"]["infinity"]["reason"]
    assert all("musicgen-jax convert" in report["not_computed"][name] for name in ("kld",))


def test_the_published_figures_stand_beside(whole):
    text = (whole / "report.md").read_text()
    assert "audiocraft's model card" in text
    assert "4.88" in text
    assert "not comparable: fad, kad" in text


def test_pairs_go_by_id(whole, data, model):
    """Clip i is what its caption and its seed give, and it is compared with its own reference."""
    made = MusicGen.from_pretrained(model).generate(
        [CAPTIONS["_0-2meOf9qY"]], seed=[batch_folder.clip_seed(7, 2)], duration=1
    )
    wav, _ = audio.read(whole / "clips/000002.wav")
    np.testing.assert_allclose(wav, np.clip(made.audio[0], -1, 1), atol=1e-4)
    page = (whole / "report.html").read_text()
    row = page[page.index('data-id="_0-2meOf9qY"') :].split("</tr>")[0]
    assert "a calm waltz" in row
    assert "clips/000002.wav" in row


def test_the_same_again_makes_and_changes_nothing(whole, model, data, monkeypatch):
    before = clips(whole), figures(whole)
    monkeypatch.setattr(Scheduler, "submit", None)
    assert cli.main(arguments(model, data, whole)) == 0
    assert (clips(whole), figures(whole)) == before


def test_finished_clips_are_not_taken_for_those_of_another_model(whole, data, tmp_path, capsys):
    testing.save_random_model(tmp_path / "other", MODEL, seed=5)
    before = clips(whole), figures(whole)
    assert cli.main(arguments(tmp_path / "other", data, whole)) == 2
    assert "was started with another model: choose another folder" in capsys.readouterr().err
    assert (clips(whole), figures(whole)) == before


def test_interrupted_at_any_place(whole, model, data, tmp_path, monkeypatch):
    """Once while clips are made and once while they are measured."""
    finished = batch_folder.Folder.finished

    def interrupted(self, prompt, *rest):
        finished(self, prompt, *rest)
        if prompt.index == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(batch_folder.Folder, "finished", interrupted)
    assert cli.main(arguments(model, data, tmp_path)) == 130
    assert len(clips(tmp_path)) == 2
    monkeypatch.undo()
    entries = len(list((whole / "features").iterdir()))
    with monkeypatch.context() as patch:
        from musicgen_jax.metrics import features

        store, count = features._store, iter(range(entries))

        def dying(entry, value):
            if next(count) == entries // 2:
                raise KeyboardInterrupt
            store(entry, value)

        patch.setattr(features, "_store", dying)
        assert cli.main(arguments(model, data, tmp_path)) == 130
    assert cli.main(arguments(model, data, tmp_path)) == 0
    assert clips(tmp_path) == clips(whole)
    assert figures(tmp_path) == figures(whole)


@pytest.mark.slow
def test_killed(whole, model, data, tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    environment["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # as in this process
    command = arguments(model, data, tmp_path)
    for sign in ("clips/000000.wav", "features"):
        process = subprocess.Popen(
            [sys.executable, "-m", "musicgen_jax", *command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 240
        while not (tmp_path / sign).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert cli.main(command) == 0
    assert clips(tmp_path) == clips(whole)
    assert figures(tmp_path) == figures(whole)


def test_workers_share_a_folder(whole, model, data, tmp_path, capsys, monkeypatch):
    for part in ("1/2", "2/2"):
        assert cli.main(arguments(model, data, tmp_path, "--worker", part)) == 0
        assert "run without --worker for the report" in capsys.readouterr().out
        assert not (tmp_path / "report.json").exists()
    assert clips(tmp_path) == clips(whole)
    monkeypatch.setattr(Scheduler, "submit", None)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").iterdir()}
    assert cli.main(arguments(model, data, tmp_path)) == 0
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").iterdir()}
    assert after == before  # the workers measured everything
    assert figures(tmp_path) == figures(whole)


def test_a_clip_that_is_not_finite_is_named(model, data, tmp_path, monkeypatch, capsys):
    result = Ticket.result

    def broken(self):
        made = result(self)
        if self.request.descriptions == [CAPTIONS["x"]]:
            made = dataclasses.replace(made, audio=np.full_like(made.audio, np.nan))
        return made

    monkeypatch.setattr(Ticket, "result", broken)
    assert cli.main(arguments(model, data, tmp_path, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["fad"]["clips"] == 3
    assert {"id": "x", "reason": "the model made samples that are NaN or infinite"} in (
        report["audio"]["skipped"]
    )


def test_another_job_is_refused(whole, model, data, capsys):
    assert cli.main([*arguments(model, data, whole), "--seed", "8"]) == 2
    assert "seed" in capsys.readouterr().err
    assert cli.main([*arguments(model, data, whole), "--top-k", "5"]) == 2
    assert "was started with top_k 250, not 5" in capsys.readouterr().err


def test_limit(model, data, tmp_path, capsys):
    assert cli.main(arguments(model, data, tmp_path, "--limit", "3", "--json")) == 0
    assert len(json.loads(capsys.readouterr().out)["clips"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda words: words[:3] + words[5:], "--model needs --captions"),
        (lambda words: words[:5] + words[7:], "--model needs --out"),
        (lambda words: [*words, "--limit", "0"], "--limit must be at least 1"),
        (lambda words: [*words, "--batch-size", "0"], "--batch-size must be at least 1"),
        (lambda words: [*words, "--metrics", "kld"], "cannot compute kld: no weights of passt"),
        (lambda words: [*words, "--seed", "-1"], "seed"),
        (lambda words: [*words[:2], "no-model", *words[3:]], "no model 'no-model'"),
    ],
)
def test_refused_before_any_work(model, data, tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path / "home"))
    out = tmp_path / "out"
    assert cli.main(change(arguments(model, data, out))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(out.glob("clips/*.wav"))


def test_no_caption_has_a_clip(model, data, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("id,caption\nelsewhere,bells\n")
    words = arguments(model, data, tmp_path / "out")
    words[words.index("--captions") + 1] = str(tmp_path / "other.csv")
    assert cli.main(words) == 2
    assert "is the name of a clip in" in capsys.readouterr().err
