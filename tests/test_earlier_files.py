"""Files that version 0.1.0 wrote before its modules were moved into rooms still load.

tests/goldens/earlier holds a small random model (without its tokenizer), codes of its codec, an
adapter, shards of codes, an exported model, a generation that was stopped after its first window
and a folder of `batch` with the first of its clips. tests/training has run folders.
"""

import importlib.util
import json
import shutil

import numpy as np
import pytest

from musicgen_jax import Codec, MusicGen, testing
from musicgen_jax.commands.cli import main
from musicgen_jax.generation.window_store import fingerprint, machine
from musicgen_jax.storage import codec_file, lora_file
from musicgen_jax.training.data.shards import CodeShards
from tests.helpers.paths import GOLDENS
from tests.helpers.tolerance import assert_close

EARLIER = GOLDENS / "earlier"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier") / "model"
    shutil.copytree(EARLIER / "model", folder)
    (folder / "tokenizer.model").write_bytes(testing.character_tokenizer())
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return MusicGen.from_pretrained(folder, adapters={"mine": EARLIER / "adapter.safetensors"})


def test_a_converted_folder_has_the_same_weights(model):
    found = fingerprint(model.t5, model.lm, model.encodec)
    assert found == (EARLIER / "fingerprint.txt").read_text().strip()


def test_codes_decode_to_the_same_audio(folder):
    encoded = codec_file.read(EARLIER / "codes.npz")
    expected = np.load(EARLIER / "expected.npz")["audio"]
    assert_close(Codec.from_pretrained(folder).decode(encoded), expected)


def test_an_adapter_belongs_to_its_model(model):
    adapter = lora_file.load(EARLIER / "adapter.safetensors", model.config.lm)
    assert adapter.config.rank == 2
    assert model.use_adapter("mine").lm is not model.lm


def test_shards_hold_their_codes(model):
    shards = CodeShards.open(EARLIER / "shards")
    codes = np.load(EARLIER / "shards" / "codes-00000.npy")
    assert (shards.codebooks, shards.card) == (model.config.lm.n_q, model.config.lm.card)
    frames = shards.num_frames_total
    np.testing.assert_array_equal(shards.codes(0), codes.T[:, :frames])


def test_an_interrupted_generation_resumes(model, tmp_path):
    partial = tmp_path / "long.wav.partial"
    shutil.copytree(EARLIER / "resumable", partial)
    settings = json.loads((partial / "settings.json").read_text())
    settings["machine"] = machine(None)  # only the same machine resumes, and this may be another
    (partial / "settings.json").write_text(json.dumps(settings))
    seen = []
    out = model.generate(
        [None],
        duration=4.0,
        seed=3,
        checkpoint=partial,
        progress=lambda done, total: seen.append((done, total)),
    )
    first = np.load(EARLIER / "resumable" / "window-00000.npy")
    np.testing.assert_array_equal(out.codes[:, :, : first.shape[2]], first)
    assert out.codes.shape[2] == 200
    assert seen[0][0] >= first.shape[2]  # the first window is not generated again


def test_a_batch_goes_on(folder, tmp_path, capsys):
    out = tmp_path / "batch"
    shutil.copytree(EARLIER / "batch", out)
    (prompts := tmp_path / "prompts.txt").write_text("bells\na calm waltz\n")
    command = ["batch", str(prompts), str(out), "--model", str(folder), "--duration", "0.3"]
    assert main([*command, "--seed", "5", "--slots", "2"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("1 of 2 clips exist already\nwrote")
    assert "an earlier version started" in said.err
    for kept in ("000000.wav", "settings.json"):
        assert (out / kept).read_bytes() == (EARLIER / "batch" / kept).read_bytes()
    first, second = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    assert "program" not in first
    assert second["program"].startswith("slots=2 ")
    assert main([*command, "--seed", "6"]) == 2


def test_an_exported_model_runs():
    spec = importlib.util.spec_from_file_location("earlier_run", EARLIER / "exported" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    exported = run.Exported(EARLIER / "exported")
    ids, mask = np.zeros((1, 16), np.int32), np.arange(16)[None] < 3
    codes = exported.codes(exported.text(ids, mask), mask, frames=9, seed=1)
    manifest = exported.manifest
    assert codes.shape == (1, manifest["codebooks"], 9)
    assert 0 <= codes.min() <= codes.max() < manifest["codes"]
    audio = exported.audio(codes)
    assert audio.shape[:2] == (1, manifest["audio_channels"])
    assert np.isfinite(audio).all()
