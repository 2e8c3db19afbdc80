"""PaSST and the KL divergence on its labels, against hear21passt's own code."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from musicgen_jax import audio, metrics
from musicgen_jax.commands import cli
from musicgen_jax.convert import convert
from musicgen_jax.convert import passt as table
from musicgen_jax.convert.inverse import invert_table
from musicgen_jax.convert.pipeline import abstract_params
from musicgen_jax.convert.torch_writer import write_torch
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.passt import Passt, log_mel
from musicgen_jax.metrics.weights import run
from musicgen_jax.storage import checkpoint
from tests.goldens.make_goldens_passt import CLASSES, DIM, SECONDS, SIGNALS, signal, weight
from tests.helpers.paths import GOLDENS
from tests.helpers.tolerance import assert_close

RATE = 32000


@pytest.fixture(scope="module")
def goldens():
    return dict(np.load(GOLDENS / "metrics/passt.npz"))


@pytest.fixture(scope="module")
def state(goldens):
    lines = [line.split() for line in goldens["shapes"]]
    return {name: weight(name, tuple(map(int, sizes))) for name, *sizes in lines}


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("passt")
    write_torch(path / "passt-s-f128.pt", state)
    convert(path / "passt-s-f128.pt", path / "ours")
    return path / "ours"


@pytest.fixture(scope="module")
def passt(folder):
    return Passt.from_pretrained(folder)


@pytest.mark.parametrize("name", SIGNALS)
def test_the_network_is_hear21passts(passt, goldens, name):
    wave = signal(name)
    spectrum = log_mel(wave)
    # The original's float32 logarithm of very small numbers is the less exact one.
    assert_close(spectrum[:, ::10], goldens[f"{name}/spectrum"], 1e-4, "spectrum")
    features, logits = run(passt.network, jnp.asarray(spectrum[None]))
    assert_close(features[0], goldens[f"{name}/features"], 1e-4, "features")
    assert_close(logits[0], goldens[f"{name}/logits"], 1e-4, "logits")
    assert_close(passt.embed(wave[None], RATE)[0], goldens[f"{name}/features"], 1e-4)
    expected = np.exp(goldens[f"{name}/logits"].astype(np.float64))
    assert_close(passt.probabilities(wave[None], RATE)[0], expected / expected.sum(), 1e-4)


def test_the_table_turns_back(folder, state):
    config = checkpoint.load_info(folder).parts["passt"]
    params = checkpoint.load_params(folder, "passt", abstract_params("passt", config))
    back = invert_table(table.TABLE, params, "passt")
    unused = {"head_dist.weight", "head_dist.bias"}
    assert back.keys() == state.keys() - unused
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name])


@pytest.mark.parametrize(
    ("samples", "pieces"),
    [(4800, 0), (4801, 1), (SECONDS * RATE, 1), (SECONDS * RATE + 4800, 1), (70_000, 2)],
)
def test_pieces(passt, samples, pieces):
    clip = np.random.default_rng(0).normal(0, 0.1, (2, samples)).astype(np.float32)
    rows = passt.probabilities(clip, RATE)
    assert rows.shape == (pieces, CLASSES)
    assert passt.embed(clip, RATE).shape == (pieces, DIM)
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-5)


def test_what_is_refused(passt, state, tmp_path):
    with pytest.raises(UserError, match="NaN"):
        passt.embed(np.full((1, 9000), np.nan, np.float32), RATE)
    del state["blocks.1.norm1.weight"]
    write_torch(tmp_path / "part.pt", state)
    with pytest.raises(UserError, match="does not fit the architecture"):
        convert(tmp_path / "part.pt", tmp_path / "ours")


def test_the_command(passt, folder, tmp_path, capsys):
    rng = np.random.default_rng(1)
    for name, n in (("a", 40_000), ("b", 70_000), ("too-short", 1000)):
        for side in ("real", "made"):
            clip = rng.normal(0, 0.1, (1, n)).astype(np.float32)
            audio.write(tmp_path / side / f"{name}.wav", clip, RATE)
    words = ["evaluate", "--audio", tmp_path / "made", "--reference", tmp_path / "real"]
    words += ["--metrics", "kld", "--json"]
    assert cli.main([str(w) for w in (*words, "--passt", folder)]) == 0
    report = json.loads(capsys.readouterr().out)
    kld = report["metrics"]["kld"]
    p, q = [], []
    for name in ("a", "b"):
        p.append(passt.probabilities(*audio.read(tmp_path / f"real/{name}.wav")))
        wav, rate = audio.read(tmp_path / f"made/{name}.wav")
        loud = audio.normalize_audio(wav, rate, "loudness", loudness_headroom_db=14)
        q.append(passt.probabilities(loud, rate))
    p, q = np.concatenate(p), np.concatenate(q)
    assert kld["value"] == pytest.approx(metrics.kl_divergence(p, q), rel=1e-6)
    assert kld["value_other_way"] == pytest.approx(metrics.kl_divergence(q, p), rel=1e-6)
    assert (kld["pairs"], kld["pieces"]) == (2, 3)
    assert cli.main([str(w) for w in (*words, "--passt", tmp_path / "no")]) == 2
    assert "cannot compute kld: no weights of passt" in capsys.readouterr().err
