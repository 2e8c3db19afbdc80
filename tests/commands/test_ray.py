"""`batch --ray` and `evaluate --ray` on a cluster of two nodes, one of which is killed."""

import importlib.util
import json

import numpy as np
import pytest

from musicgen_jax import audio, testing
from musicgen_jax.commands import batch_folder, ray_work
from musicgen_jax.commands.cli import main
from musicgen_jax.metrics import features
from tests.helpers import shallow
from tests.helpers.ray_cluster import RayCluster

TEXTS = ["bells", "a calm waltz", "drums", "a fast irish jig on the flute", "tuba", "harp"] * 4
RATE = 4000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path, shallow.TEXT)
    return path


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS))
    return path


@pytest.fixture(scope="module")
def cluster():
    """Two nodes; the last test kills one."""
    pytest.importorskip("ray")
    with RayCluster() as cluster:
        yield cluster


@pytest.fixture
def lost(monkeypatch):
    """The jobs that were lost with a worker; none is given out until both workers are ready."""
    jobs: list = []
    lose, hand_out = ray_work._Crew._lose, ray_work._Crew._hand_out

    def losing(self, member, job, why):
        jobs.append(job)
        lose(self, member, job, why)

    def waiting(self):
        if sum(member.free > 0 for member in self._members) == 2:
            monkeypatch.setattr(ray_work._Crew, "_hand_out", hand_out)
            hand_out(self)

    monkeypatch.setattr(ray_work._Crew, "_lose", losing)
    monkeypatch.setattr(ray_work._Crew, "_hand_out", waiting)
    return jobs


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.wav")}


@pytest.mark.extra
@pytest.mark.slow
def test_an_evaluation_gives_the_same_report(model, cluster, lost, tmp_path, monkeypatch):
    captions = tmp_path / "captions.jsonl"
    names = ["a", "b", "c", "d", "e"]
    rows = ({"id": name, "caption": text} for name, text in zip(names, TEXTS, strict=False))
    captions.write_text("\n".join(map(json.dumps, rows)))
    for i, name in enumerate(names):
        noise = np.random.default_rng(i).normal(0, 0.1, (1, RATE)).astype(np.float32)
        audio.write(tmp_path / f"real/{name}.wav", noise, RATE)
    (tmp_path / "real/e.wav").write_bytes(b"not a clip")
    command = ["evaluate", "--model", model, "--captions", captions, "--codec", model]
    command += ["--reference", tmp_path / "real", "--embedding", "encodec", "--duration", "0.5"]
    command = [str(word) for word in command]
    assert main([*command, "--out", str(tmp_path / "alone")]) == 0
    entries = {path.name for path in (tmp_path / "alone/features").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(features, "_store", None)  # this process measures nothing
        code = main([*command, "--out", str(tmp_path / "ray"), "--ray", cluster.address])
    assert code == 0
    assert {path.name for path in (tmp_path / "ray/features").iterdir()} == entries
    assert files_of(tmp_path / "ray/clips") == files_of(tmp_path / "alone/clips")
    reports = [
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("ray", "alone")
    ]
    for report in reports:
        del report["audio"]["path"]
    assert reports[0] == reports[1]


@pytest.mark.extra
@pytest.mark.slow
def test_a_node_is_killed_in_the_middle(model, prompts, cluster, lost, tmp_path, monkeypatch):
    options = ["--model", str(model), "--duration", "0.3", "--seed", "5", "-q"]
    assert main(["batch", str(prompts), str(tmp_path / "alone"), *options]) == 0
    finished, out = batch_folder.Folder.finished, tmp_path / "ray"

    def killing(self, *record):
        finished(self, *record)
        if len(files_of(out)) == 3:
            cluster.kill_a_node()

    monkeypatch.setattr(batch_folder.Folder, "finished", killing)
    ray = ["--ray", cluster.address, "--batch-size", "6"]
    assert main(["batch", str(prompts), str(out), *options, *ray]) == 0
    assert any(isinstance(job, batch_folder.Prompt) for job in lost)
    assert files_of(out) == files_of(tmp_path / "alone")
    lines = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    assert sorted(line["index"] for line in lines) == list(range(len(TEXTS)))
    assert (out / "settings.json").read_text() == (tmp_path / "alone/settings.json").read_text()
    # Clips that are lost are made again, with or without Ray.
    (out / "000004.wav").unlink()
    assert main(["batch", str(prompts), str(out), *options, *ray]) == 0
    assert files_of(out) == files_of(tmp_path / "alone")


def test_without_ray_one_line_says_how_to_get_it(prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["batch", str(prompts), str(tmp_path / "out"), "--ray"]) == 2
    assert capsys.readouterr().err == (
        "musicgen-jax: error: --ray needs Ray: pip install 'musicgen-jax[ray]'\n"
    )
    assert not (tmp_path / "out").exists()


def test_ray_and_a_part_of_the_work_exclude_each_other(prompts, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["batch", str(prompts), str(tmp_path / "out"), "--worker", "1/2", "--ray"])
    assert "not allowed with argument --worker" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("resources", "devices", "expected"),
    [
        ([{}, {}], 1, [("0", {"num_cpus": 1}, 1), ("1", {"num_cpus": 1}, 1)]),
        ([{}, {"GPU": 8.0}], 1, [("1", {"num_gpus": 1}, 8)]),
        ([{"GPU": 2.0}, {"GPU": 8.0}], 4, [("0", {"num_gpus": 4}, 0), ("1", {"num_gpus": 4}, 2)]),
        ([{"TPU": 4.0}, {}], 4, [("0", {"resources": {"TPU": 4}}, 1)]),
    ],
)
def test_where_workers_go(resources, devices, expected):
    nodes = [{"NodeID": str(i), "Resources": has} for i, has in enumerate(resources)]
    assert list(ray_work._places(nodes, devices)) == expected
