"""`musicgen-jax bench`: figures of a shape with random weights, within its limit."""

import json

import pytest

from musicgen_jax import testing
from musicgen_jax.commands import bench_measures, cli, doctor_checks


@pytest.fixture
def bench(monkeypatch, capsys):
    def call(*words, config=testing.DEBUG):
        monkeypatch.setattr(bench_measures, "_config", lambda name: config)
        monkeypatch.setattr(bench_measures, "_copy_rate", lambda device: 1e9)
        code = cli.main(["bench", "--steps", "8", *words])
        return code, *capsys.readouterr()

    return call


def test_all_figures(bench):
    code, out, err = bench("--json", "--batch", "2", "--dtype", "int8")
    assert code == 0
    found = json.loads(out)
    assert (found["model"], found["dtype"], found["batch"]) == ("small", "int8", 2)
    speed = found["steps_per_second"]
    assert found["times_real_time"] == pytest.approx(2 * speed / testing.DEBUG.frame_rate, rel=0.1)
    assert 0 < found["first_audio_seconds"] < found["first_audio_cold_seconds"]
    assert found["codec_decodes"] > 0
    assert found["peak_bytes"] > 1 << 26
    # One line for each, as it comes; on stdout without --json.
    assert [line.partition(":")[0] for line in err.splitlines()[1:]] == [
        "memory", "weights", "steps", "first audio", "codec", "peak memory"
    ]  # fmt: skip


def test_a_model_without_cross_attention_and_a_limit(bench):
    code, out, err = bench("--limit", "0.001", config=testing.DEBUG_MELODY)
    assert (code, err) == (0, "")
    assert (
        out.splitlines()[-1] == "left out, because 0.001 s have passed: steps, first audio, codec"
    )
    code, out, _ = bench("--limit", "600", config=testing.DEBUG_MELODY)
    assert code == 0
    assert "steps: " in out


def test_a_model_that_does_not_fit(bench, monkeypatch):
    monkeypatch.setattr(doctor_checks, "device_memory", lambda device: 1000)
    code, out, err = bench()
    assert (code, out) == (2, "")
    assert "this device has 1.0 kB: choose a smaller --model" in err


@pytest.mark.parametrize("words", [["--batch", "0"], ["--steps", "7"]])
def test_refused(bench, words):
    code, out, err = bench(*words)
    assert (code, out) == (2, "")
    assert words[0] in err
