"""The plan of the accelerator's benchmark: order, time limits, and parts that fail or hang."""

import argparse
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import on_gpu
import pytest
from on_gpu import PARTS, TOTAL_SECONDS, Part, attempt, device_params, run_parts, table

SLEEP = "import time; time.sleep(60)"


def run_fakes(parts: list[tuple[str, float, str]]) -> dict[str, str]:
    """Runs parts that are Python programs of one line."""
    programs = {name: program for name, _, program in parts}

    def unused(args: argparse.Namespace) -> None:
        raise AssertionError("a part must run in a process of its own")

    plan = [Part(name, seconds, unused) for name, seconds, _ in parts]
    return run_parts(plan, lambda p: [sys.executable, "-S", "-c", programs[p.name]], os.environ)


def test_the_plan_fits_its_time_and_begins_with_what_matters_most():
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    assert sum(part.seconds for part in PARTS) <= TOTAL_SECONDS <= 8 * 60
    assert min(part.seconds for part in PARTS) >= 30  # starting Python and a GPU takes some
    assert names[0] == "small"
    # Parts that need what an earlier one wrote.
    assert names.index("tokens-cpu") < names.index("tokens")
    assert names.index("clip") < names.index("clip-again")


def test_a_part_that_fails_crashes_or_cannot_start_does_not_stop_the_rest(tmp_path, capsys):
    outcomes = run_fakes(
        [
            ("fails", 30, "raise SystemExit(3)"),
            ("crashes", 30, "import os; os.abort()"),
            ("works", 30, f"open({str(tmp_path / 'there')!r}, 'w')"),
        ]
    )
    assert outcomes == {
        "fails": "failed (exit code 3)",
        "crashes": "failed (exit code -6)",
        "works": "done",
    }
    assert (tmp_path / "there").exists()
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines()[::2]] == ["fails:", "crashes:", "works:"]
    missing = run_parts([PARTS[0], PARTS[1]], lambda _: [str(tmp_path / "nothing")], os.environ)
    assert all(outcome.startswith("failed (") for outcome in missing.values())


def test_a_hanging_part_is_killed_with_all_that_it_started(tmp_path):
    mark = tmp_path / "pid"
    child = (
        "import subprocess, sys; "
        f"p = subprocess.Popen([sys.executable, '-S', '-c', {SLEEP!r}]); "
        f"open({str(mark)!r}, 'w').write(str(p.pid)); p.wait()"
    )
    start = time.monotonic()
    outcomes = run_fakes([("hangs", 2, child), ("next", 30, "pass")])
    assert outcomes == {"hangs": "out of time", "next": "done"}
    assert time.monotonic() - start < 40
    pid = int(mark.read_text())
    for _ in range(100):  # a killed process stays visible until its parent has read its end
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        if "Z" in status(pid):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the grandchild still runs")


def status(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_a_fast_part_leaves_its_time_to_the_next(monkeypatch):
    now, limits = [0.0], []

    def fake(command, environment, limit):
        limits.append(limit)
        now[0] += 1.0
        return "done"

    monkeypatch.setattr(on_gpu, "_run", fake)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = [Part(name, seconds, print) for name, seconds in (("a", 10), ("b", 20), ("c", 5))]
    run_parts(plan, lambda part: [], {})
    assert limits == [10, 29, 33]


def test_a_part_has_its_own_environment(tmp_path):
    mark = tmp_path / "out"
    program = f"import os; open({str(mark)!r}, 'w').write(os.environ['A'] + os.environ['B'])"
    part = Part("a", 30, print, {"B": "own"})
    run_parts(
        [part], lambda _: [sys.executable, "-S", "-c", program], os.environ | {"A": "1", "B": "2"}
    )
    assert mark.read_text() == "1own"


def test_an_error_is_one_line_that_says_where(capsys):
    def broken():
        raise ValueError("no kernel\nand more")

    assert attempt("int8", lambda: None)
    assert not attempt("int8", broken)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("int8: failed: ValueError: no kernel (test_on_gpu.py:")


def test_weights_are_random_and_of_the_right_spread():
    shape = jax.ShapeDtypeStruct
    abstract = {
        "a": {"kernel": shape((200, 100), jnp.bfloat16)},
        "b": {"kernel": {"int8": shape((200, 100), jnp.int8), "scale": shape((200,), jnp.float32)}},
        "norm": {"scale": shape((1000,), jnp.float32)},
    }
    made = device_params(abstract)
    assert jax.tree.structure(made) == jax.tree.structure(abstract)
    assert jax.tree.all(
        jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), made, abstract)
    )
    whole = made["b"]["kernel"]
    for values in (made["a"]["kernel"], whole["int8"] * whole["scale"][:, None]):
        values = np.asarray(values, np.float32)
        assert abs(values.mean()) < 0.002
        assert values.std() == pytest.approx(0.02, rel=0.05)
    assert np.mean(made["norm"]["scale"]) == pytest.approx(1.0, abs=0.01)


def test_the_table_has_a_row_for_each_side():
    speeds = {"bfloat16": [400.0, 1, 2], "transformers bfloat16": [40.0, 1, 2]}
    rows = table(
        [
            {
                "benchmark": "on_gpu_lm",
                "size": "small",
                "batch": 1,
                "per_second": speeds,
                "fraction_of_copying": {"bfloat16": 0.5},
            },
            {
                "benchmark": "on_gpu_tokens",
                "tokens": 400,
                "same_tokens": 1.0,
                "largest_logit_error": 2e-6,
            },
        ]
    )
    assert rows == [
        "small, batch 1, bfloat16: 400.0 steps/s, 50% of the copy bandwidth",
        "small, batch 1, transformers bfloat16: 40.0 steps/s",
        "greedy tokens as on the CPU: 100.00% of 400, logits within 2.0e-06 of the largest",
    ]


def test_a_cut_off_line_of_results_is_passed_over(tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    assert on_gpu.read_lines(results) == []
    results.write_text('{"a": 1}\n{"b": ')
    assert on_gpu.read_lines(results) == [{"a": 1}]
    assert "not a line of results" in capsys.readouterr().out
