"""`musicgen-jax info` and `models`: what a thing is, found from the thing itself."""

import io
import json

import numpy as np
import pytest

from musicgen_jax import audio, testing
from musicgen_jax.commands import cli
from musicgen_jax.config import OFFICIAL_MODELS
from musicgen_jax.metrics import statistics_file
from musicgen_jax.metrics.frechet import gaussian_of
from tests.helpers.paths import GOLDENS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path)
    return path


@pytest.fixture
def info(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path / "home"))

    def call(*words):
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return json.loads(out) if "--json" in words else out

    return call


def refused(capsys, *words) -> str:
    assert cli.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_model_of_a_folder(info, folder):
    found = info("info", folder, "--json")
    assert (found["kind"], found["window_seconds"], found["takes"]) == ("model", 3.0, ["text"])
    assert found["architecture"]["lm"]["dim"] == testing.DEBUG.lm.dim
    arrays = testing.model_params(testing.random_model())
    count = lambda tree: sum(  # noqa: E731
        count(leaf) if isinstance(leaf, dict) else np.size(leaf) for leaf in tree.values()
    )
    assert found["parameters"]["lm"] == count(arrays["lm"])
    assert found["parameters"]["all"] == sum(count(arrays[name]) for name in arrays)


def test_the_bundled_model_for_people(info):
    text = info("info", "nano")
    assert "released under the MIT licence" in text
    assert "sample_rate     16000\n" in text


@pytest.mark.parametrize("name", ["small", "musicgen-small", "facebook/musicgen-small"])
def test_an_official_model_that_is_not_here(info, name, tmp_path):
    found = info("info", name, "--json")
    assert (found["name"], found["converted"]) == ("facebook/musicgen-small", False)
    assert "CC-BY-NC" in found["license"]
    assert str(tmp_path / "home/facebook--musicgen-small") in found["way"]
    assert found["parameters"]["lm"] == 420_371_456
    assert not (tmp_path / "home").exists()


def test_a_clip_of_generate(info, folder, tmp_path, capsys):
    for suffix in ("wav", "flac", "mp3", "ogg"):
        clip = tmp_path / f"x.{suffix}"
        words = ["generate", "bells", "--seed", "7", "--duration", "0.5", "--top-k", "5"]
        assert cli.main([*words, "--model", str(folder), "-o", str(clip)]) == 0
        capsys.readouterr()
        found = info("info", clip, "--json")
        assert found["made_by"] == "musicgen-jax"
        made = found["settings"]
        assert (made["prompt"], made["seed"], made["top_k"]) == ("bells", 7, 5)
        assert (made["model"], made["duration"]) == ("debug", 0.5)
        assert "musicgen-jax=" in made["program"]
        assert str(tmp_path) not in json.dumps(made)


def test_a_long_clip_and_a_clip_of_several(info, folder, tmp_path, capsys):
    words = ["generate", "bells", "drums", "--duration", "3.5", "--model", str(folder)]
    assert cli.main([*words, "-o", str(tmp_path / "x.flac")]) == 0
    capsys.readouterr()
    made = info("info", tmp_path / "x-1.flac", "--json")["settings"]
    assert (made["prompt"], made["clip"], made["join"]) == ("drums", 1, "hard")


def test_a_clip_of_batch(info, folder, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "bells", "seed": 3}\n{"prompt": null}\n')
    words = ["batch", tmp_path / "p.jsonl", tmp_path / "out", "--model", folder, "--slots", 1]
    words += ["--duration", 0.3, "--format", "ogg", "--json"]
    assert cli.main([str(word) for word in words]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["bells", None]
    assert lines[0]["file"] == str(tmp_path / "out/000000.ogg")
    made = info("info", tmp_path / "out/000000.ogg", "--json")["settings"]
    assert (made["prompt"], made["seed"]) == ("bells", 3)
    assert made["program"].startswith("slots=1 ")
    assert info("info", tmp_path / "out/000001.ogg", "--json")["settings"]["prompt"] is None


def test_a_line_of_json_for_each_prompt_of_stdin(folder, tmp_path, capsys, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO("bells\n\n  dr\u00fcms \n".encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    words = ["generate", "-", "--duration", "0.3", "--model", str(folder), "--json"]
    assert cli.main([*words, "-o", str(tmp_path / "x.wav")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["bells", "dr\u00fcms"]
    assert [line["file"] for line in lines] == [str(tmp_path / f"x-{i}.wav") for i in (0, 1)]


def test_quiet_says_nothing(folder, tmp_path, capsys):
    words = ["generate", "bells", "--duration", "0.3", "--model", str(folder), "-q"]
    assert cli.main([*words, "-o", str(tmp_path / "x.wav"), "--save-codes"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xff\xfe", b"x\n" * 1001])
def test_a_stdin_without_prompts(capsys, monkeypatch, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert "stdin" in refused(capsys, "generate", "-")


def test_a_clip_of_somebody_else(info, tmp_path):
    path = audio.write(tmp_path / "x.wav", np.ones((2, 800), np.float32), 8000, comment="hello")
    found = info("info", path, "--json")
    assert (found["seconds"], found["channels"]) == (0.1, 2)
    assert "settings" not in found


def test_codes_adapters_and_statistics(info, tmp_path):
    codes = info("info", GOLDENS / "earlier/codes.npz", "--json")
    assert (codes["kind"], codes["codec"], codes["frames"]) == ("codes", "debug", 75)
    adapter = info("info", GOLDENS / "earlier/adapter.safetensors", "--json")
    assert (adapter["kind"], adapter["for"], adapter["rank"]) == ("adapter", "debug", 2)
    rows = np.random.default_rng(0).normal(size=(9, 3))
    statistics = gaussian_of(rows.mean(0), np.cov(rows.T), 9)
    path = statistics_file.write(tmp_path / "s.npz", statistics, {"embedding": "vggish"})
    found = info("info", path, "--json")
    assert found == {
        "kind": "statistics", "embedding": "vggish", "rows": 9, "dimensions": {"mean": 3}
    }  # fmt: skip


def test_what_it_does_not_know(capsys, tmp_path):
    (tmp_path / "text").write_text("hello")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "folder").mkdir()
    assert "not an audio file" in refused(capsys, "info", tmp_path / "text")
    assert "neither codes nor statistics" in refused(capsys, "info", tmp_path / "other.npz")
    assert "not a model" in refused(capsys, "info", tmp_path / "folder")
    assert "no file or folder" in refused(capsys, "info", tmp_path / "none.wav")
    assert "no model 'smal'" in refused(capsys, "info", "smal")


def test_models_that_are_here_and_that_are_not(info, folder, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "facebook--musicgen-small").symlink_to(folder)
    (home / "of-my-own").symlink_to(folder)
    (home / "compiled").mkdir()
    (home / "facebook--musicgen-large").mkdir()
    document = info("models", "--json")
    found = {model["name"]: model["state"] for model in document["models"]}
    assert set(OFFICIAL_MODELS) < set(found)
    assert found["nano"] == found["nano-melody"] == "bundled"
    assert found["facebook/musicgen-small"] == found["of-my-own"] == "ready"
    assert found["facebook/musicgen-large"] == "broken"
    assert found["facebook/musicgen-medium"] == "missing"
    assert "compiled" not in found
    assert "broken   facebook/musicgen-large" in info("models")
