"""The parts of the benchmarks that time nothing: bookkeeping, byte counts, comparisons."""

import argparse
import json
import subprocess
from types import SimpleNamespace

import evaluate_memory
import jax
import jax.numpy as jnp
import lm_steps
import measuring
import numpy as np
import products
import pytest
import slots
from precision_quality import compare, step_logits

from musicgen_jax import testing
from musicgen_jax.generation.plan import cache_lengths
from tests.helpers import shallow
from tests.helpers.tolerance import assert_close


def test_sides_run_in_turn_and_a_broken_one_is_left_out(capsys):
    calls = []

    def broken():
        raise RuntimeError("no such kernel")

    runs = {
        "a": lambda: calls.append("a"),
        "broken": broken,
        "b": lambda: calls.append("b"),
    }
    result = measuring.in_turn(runs, 2)
    assert calls == ["a", "b"] * 3
    assert result["broken"] == {"error": "RuntimeError: no such kernel"}
    assert all(len(result[side]["seconds"]) == 2 for side in "ab")
    assert "round 1: b" in capsys.readouterr().out


def test_ratios_are_of_rounds_and_busy_rounds_are_named(capsys):
    result = {
        "ours": {"seconds": [1.0, 2.0, 4.0], "foreign_cores": [0.0, 0.1, 0.0]},
        "peer": {"seconds": [3.0, 4.0, 4.0], "foreign_cores": [0.0, 0.0, 0.9]},
        "broken": {"error": "?"},
    }
    speeds = measuring.summary(result, 8.0, "steps", "ours")
    assert speeds["per_second"] == {"ours": [4.0, 2.0, 8.0], "peer": [2.0, 2.0, 2.667]}
    assert speeds["ratio"] == {"peer": 2.0}
    assert not speeds["quiet"]
    assert "do not quote" in capsys.readouterr().out


def test_a_record_says_where_it_comes_from(tmp_path, capsys):
    args = argparse.Namespace(quick=False, results=tmp_path / "results.jsonl")
    for value in (1, 2):
        measuring.record("mine", args, value=value)
    lines = [json.loads(line) for line in args.results.read_text().splitlines()]
    assert [line["value"] for line in lines] == [1, 2]
    assert {"benchmark", "date", "commit", "device", "versions"} <= lines[0].keys()
    assert lines[0]["versions"]["jax"] == jax.__version__
    args.quick = True
    measuring.record("mine", args, value=3)
    assert len(args.results.read_text().splitlines()) == 2
    assert '"value": 3' in capsys.readouterr().out


def test_the_memory_is_measured_in_turn_with_the_steps(capsys):
    line = lm_steps.main(["--quick", "--no-transformers"])
    said = capsys.readouterr().out
    for stream in ("reading", "copying"):
        assert f"round 0: {stream}" in said
        measured = line["roofline"][stream]
        speed, low, high = measured["gb_per_second"]
        assert 0 < low <= speed <= high
        assert measured["fraction"] == pytest.approx(line["gb_per_second"] / speed, abs=0.02)
        assert stream not in line["per_second"]


@pytest.mark.slow
def test_sets_of_clips_are_measured_in_processes_of_their_own(capsys):
    line = evaluate_memory.main(["--quick"])
    assert line is not None
    assert [(found["code"], found["clips"]) for found in line["sets"]] == [(0, 2), (0, 4)]
    assert line["sets"][1]["rows"] == 2 * line["sets"][0]["rows"]
    assert all(found["peak_bytes"] > 1 << 20 for found in line["sets"])
    assert "4 clips" in capsys.readouterr().out


def test_slots_make_all_clips():
    line = slots.main(["--quick", "--slots", "2", "--clips", "5"])
    assert line["clips"] == 5
    assert line["steps"] == sum(clip.frames + 3 for clip in slots.requests(testing.DEBUG, 5, 0.2))
    assert line["program"].startswith("slots=2 steps=160")
    assert line["per_second"].keys() == {"2 slots", "one by one"}


def test_a_copy_copies():
    runs = measuring.memory_streams(1 << 16, times=3)
    (copy,) = runs["copying"]()  # type: ignore[misc]
    assert copy.nbytes == 1 << 15  # read once and written once
    assert (np.asarray(copy) == 2).all()
    runs["copying"]()
    assert copy.is_deleted()  # its memory is written again: none is asked of the system


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_bytes_of_a_step(dtype):
    config = lm_steps.lm_config("small", quick=True)
    lm = lm_steps.random_lm(config, dtype)
    moved = lm_steps.bytes_per_step(lm, batch=2, steps=8)
    D, F, L, rows = config.dim, config.ffn_dim, config.num_layers, 4
    matrices = L * (6 * D * D + 2 * D * F) + config.n_q * config.card * D
    norms = L * 6 * D * 4
    scales = L * (7 * D + F) + config.n_q * config.card if dtype == "int8" else 0
    assert moved["weights"] == matrices * (1 if dtype == "int8" else 4) + norms + 4 * scales
    text = lm_steps.TEXT_TOKENS
    own = 2 * L * rows * cache_lengths(8, lm.tuning)[-1] * D * 4
    assert moved["cache"] == own + 2 * L * 2 * text * D * 4  # null rows hear nothing
    assert moved["held"] > moved["weights"]
    codes = lm_steps.ours(lm, 1, 8)()
    assert codes.shape == (1, 4, 5)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_way_of_a_product_gives_the_same(dtype, rows):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.integers(-9, 9, shape), dtype) for shape in ((rows, 24), (10, 24)))
    expected = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    for name, way in products.WAYS.items():
        if name != "rows twice" or rows == 1:
            assert_close(way(x, w), expected)


def test_steps_cost_what_the_whole_sequence_costs():
    model = testing.random_model(shallow.TEXT)
    codes = np.random.default_rng(0).integers(0, model.config.lm.card, (3, 4, 6))
    result = compare({"a": model, "b": model}, codes, ["x", None, "y"], batch=2)
    assert result["a"]["same_likeliest"] == [1.0] * 4
    assert result["a"] == result["b"]
    whole = np.asarray(model.lm_logits(codes, ["x", None, "y"]))
    steps = step_logits(model, codes, ["x", None, "y"])
    known = np.isfinite(whole)  # the last frames of delayed books have no logits there
    assert known[:, 0].all()
    assert_close(steps[known], whole[known])
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(steps)), codes[..., None], -1)
    np.testing.assert_allclose(result["a"]["nats"], nats.mean((0, 2, 3)), atol=1e-3)


def test_a_line_names_its_commit_and_whether_more_than_results_changed(tmp_path, monkeypatch):
    def git(*words):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *author, *words], cwd=tmp_path, check=True, capture_output=True)

    folder = tmp_path / "benchmarks"
    folder.mkdir()
    results, code = folder / "results.jsonl", tmp_path / "code.py"
    results.write_text("")
    code.write_text("")
    git("init")
    git("add", "-A")
    git("commit", "-m", "a")
    monkeypatch.setattr(measuring, "__file__", str(folder / "measuring.py"))
    args = SimpleNamespace(quick=False, results=results)
    lines = [measuring.record("x", args) for _ in range(2)]  # the first changes the results
    assert len(lines[0]["commit"]) >= 7
    assert lines[1]["commit"] == lines[0]["commit"]
    assert "dirty" not in lines[1]["commit"]
    code.write_text("changed")
    assert measuring.record("x", args)["commit"] == lines[0]["commit"] + "-dirty"
