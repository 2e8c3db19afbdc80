"""Fine-tuning a small model that was converted: it learns, goes on after a kill, and goes back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import soundfile
from orbax.checkpoint import v1 as ocp

from musicgen_jax import MusicGen
from musicgen_jax.commands import cli
from musicgen_jax.config import toml
from musicgen_jax.convert import convert, export_torch
from musicgen_jax.convert.pipeline import abstract_params
from musicgen_jax.storage import checkpoint, lora_file
from musicgen_jax.training import finetune, lm
from tests.helpers.paths import GOLDENS

SHORT = ["--seconds", "0.4", "--batch-size", "4", "--log-every", "5"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A converted model, and three clips with descriptions, encoded."""
    home = tmp_path_factory.mktemp("finetune")
    convert(GOLDENS / "mono/transformers", home / "twin")
    (home / "music").mkdir()
    for i, (pitch, text) in enumerate([(220, "a low song"), (440, "a song"), (880, "a high song")]):
        time = np.arange(32000) / 32000
        soundfile.write(home / f"music/{i}.wav", 0.3 * np.sin(2 * np.pi * pitch * time), 32000)
        (home / f"music/{i}.json").write_text(json.dumps({"description": text}))
    return home


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def params(folder):
    info = checkpoint.load_info(folder)
    return {
        name: checkpoint.load_params(folder, name, abstract_params(name, part), keep_dtypes=True)
        for name, part in info.parts.items()
    }


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_the_whole_model_learns_and_goes_back(home, tmp_path, capsys):
    """From audio to transformers' files: the loss falls, and not a bit is lost on the way back."""
    run = tmp_path / "run"
    command = ["finetune", str(home / "twin"), str(home / "music"), "--run", str(run), *SHORT]
    assert cli.main([*command, "--steps", "25", "--learning-rate", "1e-2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {run / 'model'}"
    losses = [record["loss"] for record in records(run)]
    assert losses[-1] < losses[0] - 1.0, losses
    assert (run / "report.html").is_file()
    before, after = params(home / "twin"), params(run / "model")
    for component in ("t5", "encodec"):  # frozen
        assert_same(before[component], after[component])
    change = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), before["lm"], after["lm"])
    assert min(jax.tree.leaves(change)) > 0
    source = checkpoint.load_info(run / "model").source
    assert source["finetuned"]["steps"] == 25
    export_torch(run / "model", tmp_path / "theirs", format="transformers")
    convert(tmp_path / "theirs", tmp_path / "again")
    assert_same(after, params(tmp_path / "again"))


@pytest.fixture(scope="module")
def adapted(home):
    """A run of LoRA that nobody disturbed."""
    run = home / "lora"
    command = ["finetune", str(home / "twin"), str(home / "music"), "--run", str(run), *SHORT]
    command += ["--steps", "30", "--lora", "4", "--learning-rate", "3e-2", "--save-every", "10"]
    assert cli.main(command) == 0
    return run


def test_an_adapter_learns(home, adapted):
    """What it learnt is what it adds to the model: the loss of the plain model comes back."""
    losses = [record["loss"] for record in records(adapted)]
    assert losses[-1] < losses[0] - 0.7, losses
    file = adapted / "adapter.safetensors"
    assert file.stat().st_size < 25_000
    kept = ocp.metadata(str(adapted / "checkpoints" / "30")).metadata
    assert any(name.startswith("params.lora.") for name in kept)
    assert not any(name.startswith(("params.lm.", "params.t5.")) for name in kept)
    model = MusicGen.from_pretrained(home / "twin", adapters={"mine": file})
    mine = model.use_adapter("mine")
    texts = ["a low song", "a high song"]
    codes = finetune.CodeShards.open(f"{adapted}-codes").codes(0)[None, :, :20]
    loss = [nll(m, codes, texts[:1]) for m in (model, mine)]
    assert loss[1] < loss[0] - 0.7, loss


def nll(model, codes, texts):
    logits = np.asarray(jax.nn.log_softmax(model.lm_logits(codes, texts)))
    chosen = np.take_along_axis(logits, codes[..., None], -1)[..., 0]
    return -np.nanmean(chosen)


def test_a_run_that_was_cut_off_goes_on(home, adapted, tmp_path):
    """Interrupted after a checkpoint and some steps more: the same adapter, bit by bit."""
    config = toml.read(adapted / "config.toml", finetune.FinetuneConfig)

    def stop(line):
        if line.startswith("step 15 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(config, tmp_path / "run", say=stop)
    said = []
    made = finetune.finetune(config, tmp_path / "run", resume=True, say=said.append)
    assert "resuming from step 10" in said
    assert made.read_bytes() == (adapted / "adapter.safetensors").read_bytes()


def test_a_finished_run_trains_on(adapted, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(adapted, run)
    assert cli.main(["finetune", "--run", str(run), "--resume", "--steps", "32"]) == 0
    assert "resuming from step 30" in capsys.readouterr().out
    assert [record["step"] for record in records(run)][-2:] == [30, 32]
    ours, theirs = (lora_file.load(f / "adapter.safetensors").weights for f in (run, adapted))
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), ours, theirs)
    assert any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_killed_run_goes_on(home, adapted, tmp_path):
    """SIGKILL, by the command line."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "musicgen_jax", "finetune", str(home / "twin")]
    command += [f"{adapted}-codes", "--run", str(run), *SHORT]
    command += ["--steps", "30", "--lora", "4", "--learning-rate", "3e-2", "--save-every", "10"]
    environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    with subprocess.Popen(command, env=environment) as process:
        while not (run / "checkpoints" / "10").is_dir():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not (run / "adapter.safetensors").exists()
    assert cli.main(["finetune", "--run", str(run), "--resume"]) == 0
    ours, theirs = (lora_file.load(f / "adapter.safetensors").weights for f in (run, adapted))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), ours, theirs)


def test_nothing_of_the_model_changes_beside_an_adapter(home, adapted):
    """What is kept of a step, and in memory for the next: nothing of the model's own size."""
    model = checkpoint.load_config(home / "twin")
    config = toml.read(adapted / "config.toml", finetune.FinetuneConfig).train
    state = lm.abstract_state(model, config)
    assert set(lm.trained(state.params, config)) == {"lora"}
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params["lora"]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer))
    assert 2 * size <= moments < 2 * size + 10


def test_what_makes_no_sense_is_said(home, adapted, tmp_path, capsys):
    twin, music = str(home / "twin"), f"{adapted}-codes"
    cases = [
        ([], "needs MODEL and DATA, or --resume"),
        (["none", music], "no model 'none'"),
        ([twin, music, "--alpha", "3"], "give --lora RANK too"),
        ([twin, music, "--lora", "0"], "rank must be from 1 to"),
        ([twin, music, "--lora", "2", "--target", "mlp"], "matches none of"),
        ([twin, music, "--seconds", "31"], "at most 30"),
        ([twin, music, "--seconds", "0.01"], "shorter than the delays"),
        ([twin, music, "--steps", "0"], "steps must be at least 1"),
        ([twin, str(tmp_path / "empty")], "empty"),
        (["nano", music], "a different codec from that of nano"),
        (["--resume"], "no run to resume"),
    ]
    for arguments, message in cases:
        assert cli.main(["finetune", *arguments, "--run", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert cli.main(["finetune", "nano", music, "--run", str(adapted), "--resume"]) == 2
    assert "began with model" in capsys.readouterr().err
