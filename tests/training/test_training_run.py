"""A run's folder: killed, resumed, out of disk, gone astray; its report."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicgen_jax import audio, testing
from musicgen_jax.errors import UserError
from musicgen_jax.model import MusicGen
from musicgen_jax.training import run as run_module
from musicgen_jax.training.records import records
from musicgen_jax.training.report import page
from musicgen_jax.training.run import Run
from tests.helpers import lm_runs
from tests.helpers.faults import raising
from tests.helpers.paths import ROOT


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float = 0.1


def state(value=0.0, shape=(3,)):
    return {"weights": jnp.full(shape, value), "step": jnp.asarray(int(value))}


def abstract(shape=(3,)):
    return jax.eval_shape(lambda: state(shape=shape))


def save_and_wait(run, step, saved):
    run.save(step, saved)
    run.finish()


def open_run(folder, fingerprint="data", **options):
    return Run(folder, Settings(), fingerprint=fingerprint, **options)


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    with open_run(tmp_path / "run", keep=2) as run:
        assert run.restore(abstract()) is None
        for step, score in enumerate([5.0, 1.0, 4.0, 3.0, 2.0], start=1):
            run.log({"step": step, "loss": score})
            run.save(step, state(step), score=score)
    with open_run(tmp_path / "run", resume=True) as run:
        assert (run.steps(), run.best()) == ([2, 4, 5], 2)
        step, loaded = run.restore(abstract())
        assert step == int(loaded["step"]) == 5
        np.testing.assert_array_equal(loaded["weights"], np.full(3, 5.0))


def test_a_checkpoint_holds_the_state_of_its_moment(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    now = jnp.zeros(200_000)
    with open_run(tmp_path / "run") as run:
        for i in range(1, 4):
            now = step(now)
            run.save(i, {"x": now})
            now = step(step(now))  # while it is being written
    with open_run(tmp_path / "run", resume=True) as run:
        _, loaded = run.restore({"x": jax.ShapeDtypeStruct(now.shape, now.dtype)})
    assert set(np.asarray(loaded["x"])) == {7.0}


def test_settings_that_do_not_fit_the_checkpoints_leave_those_of_the_run(tmp_path):
    folder = tmp_path / "run"
    with open_run(folder) as run:
        run.save(4, state(4))
    kept = {name: (folder / name).read_bytes() for name in ("config.toml", "run.json")}
    other = Settings(rate=0.5)
    options = {"fingerprint": "other data", "resume": True, "data_changed": True}
    for wanted, steps, message in (
        (abstract((4,)), 9, "of other settings: .*; resume with the settings in .*config.toml"),
        (abstract(), 3, "has done 4 steps already: give --steps 4 or more"),
    ):
        with Run(folder, other, **options) as run, pytest.raises(UserError, match=message):
            run.restore(wanted, steps)
        assert kept == {name: (folder / name).read_bytes() for name in kept}
    with Run(folder, other, **options) as run:
        assert run.restore(abstract(), 4)[0] == 4
    assert b"rate = 0.5" in (folder / "config.toml").read_bytes()
    assert "other data" in (folder / "run.json").read_text()


def test_records_after_the_checkpoint_are_forgotten(tmp_path):
    folder = tmp_path / "run"
    with open_run(folder) as run:
        run.log({"step": 1, "loss": 1.0})
        run.save(1, state(1))
        run.log({"step": 2, "loss": 0.5})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # cut off by a kill
    with open_run(folder, resume=True) as run:
        run.restore(abstract())
        run.log({"step": 2, "loss": 0.25})
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.25},
    ]


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    folder = tmp_path / "run"
    with open_run(folder) as run:
        run.save(1, state(1))
        run.save(2, state(2))
    for file in (folder / "checkpoints" / "2").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with open_run(folder, resume=True) as run:
        assert run.restore(abstract())[0] == 1
        assert run.steps() == [1]
    assert (
        "is damaged and was renamed to damaged-2: resuming from step 1" in capsys.readouterr().out
    )
    assert (folder / "checkpoints" / "damaged-2").is_dir()


@pytest.mark.parametrize(
    "fault",
    [
        PermissionError(13, "Permission denied"),
        MemoryError(),
        ValueError(
            "PERMISSION_DENIED: Error opening file: [OS error 13: EACCES Permission denied]"
        ),
        OSError(5, "Input/output error"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(
    tmp_path, monkeypatch, fault
):
    folder = tmp_path / "run"
    with open_run(folder) as run:
        run.save(1, state(1))
        run.save(2, state(2))
    with open_run(folder, resume=True) as run:
        with monkeypatch.context() as patch:
            patch.setattr(run_module.ocp, "load", raising(fault))
            with pytest.raises(UserError, match=r"cannot read .*checkpoints/2"):
                run.restore(abstract())
        assert run.restore(abstract())[0] == 2


def test_names_and_records_that_nobody_of_ours_wrote(tmp_path):
    folder = tmp_path / "run"
    with open_run(folder) as run:
        run.log({"step": 1, "loss": 1.0})
        run.save(1, state(1))
    for name in ("\u00b2", "\u0663", "9" * 200):  # digits, but not a step
        (folder / "checkpoints" / name).mkdir()
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n{"step": 1, "loss": 2.0}\n' + b"[" * 100_000 + b"\n")
    assert [record["loss"] for record in records(folder)] == [1.0, 2.0]
    with open_run(folder, resume=True) as run:
        assert run.restore(abstract())[0] == 1


def test_what_a_kill_left_behind_is_removed(tmp_path):
    folder = tmp_path / "run"
    with open_run(folder) as run:
        run.save(1, state(1))
    for name in ("2.orbax-checkpoint-tmp", "0.deleted"):
        (folder / "checkpoints" / name).mkdir()
    with open_run(folder, resume=True):
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["1"]


def test_wrong_folders_are_refused_in_one_line(tmp_path):
    folder = tmp_path / "run"
    with open_run(folder) as run:
        run.save(1, state(1))
        with pytest.raises(UserError, match="another process trains"):
            open_run(folder, resume=True)
    with pytest.raises(UserError, match="holds a run: continue it with --resume"):
        open_run(folder)
    with pytest.raises(UserError, match=r"the data has changed .* \(fingerprint data, now other\)"):
        open_run(folder, "other", resume=True)
    with (
        open_run(folder, "other", resume=True, data_changed=True) as run,
        pytest.raises(UserError, match=r"weights is \(3,\) there, but \(4,\)"),
    ):
        run.restore(abstract((4,)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "song.wav").touch()
    with pytest.raises(UserError, match="not empty and not a run"):
        open_run(tmp_path / "mine")
    with pytest.raises(UserError, match="is a file"):
        open_run(tmp_path / "mine" / "song.wav")


def test_a_number_that_is_not_finite_stops_the_run(tmp_path):
    with open_run(tmp_path / "run") as run:
        run.save(4, state(4))
        with pytest.raises(UserError, match=r"loss is nan at step 5: .*checkpoints/4; --resume"):
            run.log({"step": 5, "loss": float("nan")})


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    large = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    try:
        with open_run(tmp_path / "run") as run:
            run.save(1, {"x": jnp.asarray(large)})
            run.finish()
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
            with pytest.raises(UserError) as caught:
                save_and_wait(run, 2, {"x": jnp.asarray(large)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    message = str(caught.value)
    assert message.startswith("the checkpoint of step 2 could not be written (")
    assert f"{tmp_path / 'run' / 'checkpoints' / '1'}; --resume continues" in message
    assert "\n" not in message
    assert len(message) < 500
    with open_run(tmp_path / "run", resume=True) as run:
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]
        step, loaded = run.restore({"x": jax.ShapeDtypeStruct(large.shape, large.dtype)})
    assert step == 1
    np.testing.assert_array_equal(loaded["x"], large)


def test_a_disk_that_is_full_is_called_that(tmp_path, monkeypatch):
    def save_async(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: write failed [errno 28: No space left on device]\nx")

    with open_run(tmp_path / "run") as run:
        monkeypatch.setattr("musicgen_jax.training.run.ocp.save_async", save_async)
        with pytest.raises(UserError, match=r"\(No space left on device\): stopped, and"):
            run.save(1, state(1))


def test_the_report_needs_nothing_from_outside(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    records = [{"step": i, "loss": 5 / i, "ce_q1": 3 / i, "mine": 1.0} for i in range(1, 2000)]
    text = page("<run>", "rate = 1 < 2\n", records, [picture])
    assert "&lt;run&gt;" in text
    assert "rate = 1 &lt; 2" in text
    assert text.count("<svg") == 3  # loss, codebooks, and what it does not know
    assert "data:image/png;base64,iVBORw==" in text
    for foreign in ("<script", "<link", 'src="http', "nan", "NaN"):
        assert foreign not in text
    assert len(text) < 100_000
    assert "Nothing was recorded" in page("empty", "", [])
    assert "<circle" in page("one", "", [{"step": 3, "loss": 0.0}])


# --- Whole runs, in processes of their own ------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    testing.save_random_model(folder / "base", lm_runs.BASE)
    return folder / "base"


def start(folder, base, *options):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(base.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.helpers.lm_runs", str(folder), str(base), *options]
    log = (folder.parent / f"{folder.name}.log").open("ab")
    with log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)


def run_to_its_end(folder, base, *options) -> tuple[int, str]:
    process = start(folder, base, *options)
    try:
        code = process.wait(240)
    finally:
        process.kill()
        process.wait()
    return code, (folder.parent / f"{folder.name}.log").read_text()


def kill_at(folder, base, step: int, delay: float) -> None:
    """Starts the run and kills it some time after it has recorded a step."""
    process = start(folder, base)
    try:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            recorded = lm_runs.records(folder)
            if recorded and recorded[-1]["step"] >= step:
                break
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, log = run_to_its_end(folder, base)
    assert code == 0, log
    return folder


def weights(folder):
    model = MusicGen.from_pretrained(folder, dtype="float32")
    return testing.model_params(model)


def check_killed_run(kills, uninterrupted, base, folder, seed):
    rng = random.Random(seed)
    last = lm_runs.CONFIG.training.steps - 2
    for i in range(kills):
        kill_at(folder, base, rng.randint(1 + last * i // kills, last), rng.random() * 0.05)
    code, log = run_to_its_end(folder, base)
    assert code == 0, log
    assert lm_runs.records(folder) == lm_runs.records(uninterrupted)
    for name in ("model", "model-last"):
        ours, theirs = weights(folder / name), weights(uninterrupted / name)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(uninterrupted, base, tmp_path):
    check_killed_run(2, uninterrupted, base, tmp_path / "run", seed=1)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_an_uninterrupted_one(uninterrupted, base, tmp_path):
    check_killed_run(10, uninterrupted, base, tmp_path / "run", seed=2)


def test_a_run_leaves_a_model_that_plays_and_a_report(uninterrupted):
    model = MusicGen.from_pretrained(uninterrupted / "model")
    assert model.generate(["abc"], duration=0.2).codes.shape == (1, 4, 10)
    assert "<svg" in (uninterrupted / "report.html").read_text()
    averaged, last = (weights(uninterrupted / name)["lm"] for name in ("model", "model-last"))
    equal = jax.tree.leaves(jax.tree.map(np.array_equal, averaged, last))
    assert not all(equal)
    recorded = lm_runs.records(uninterrupted)
    assert recorded[-1]["loss"] < 0.8 * recorded[0]["loss"]
    assert {"ce_q1", "ppl_q4", "grad_norm", "lr"} <= recorded[-1].keys()


def test_clips_are_made_on_the_way(base, tmp_path):
    config = dataclasses.replace(lm_runs.shorter(4), **lm_runs.SAMPLES)
    lm_runs.train(tmp_path / "run", base, config)
    clips = sorted((tmp_path / "run" / "samples").glob("*.wav"))
    assert [clip.name for clip in clips] == ["step-00000003-0.wav", "step-00000003-1.wav"]
    wav, rate = audio.read(clips[1])
    assert wav.shape[1] == round(0.1 * rate)
    assert np.abs(wav).max() > 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_with_the_good_checkpoint(uninterrupted, base, tmp_path):
    folder = tmp_path / "run"
    code, log = run_to_its_end(folder, base, "--poison", "7")
    assert code == 2, log
    (error,) = [line for line in log.splitlines() if "error:" in line]
    assert "loss is nan at step 7: stopped, the last good checkpoint is" in error
    assert f"{folder / 'checkpoints' / '5'};" in error
    code, log = run_to_its_end(folder, base)  # without the poison it goes on
    assert code == 0, log
    assert lm_runs.records(folder) == lm_runs.records(uninterrupted)


@pytest.mark.extra
def test_records_also_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    with open_run(tmp_path / "run", tensorboard=True) as run:
        run.log({"step": 1, "loss": 0.5})
    (events,) = (tmp_path / "run" / "tensorboard").glob("events.*")
    assert b"loss" in events.read_bytes()


def test_tensorboard_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("musicgen_jax.training.run.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install \"musicgen-jax\[tensorboard\]\""):
        open_run(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
