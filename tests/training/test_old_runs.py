"""Folders of runs that an earlier version of the package wrote: fixtures/runs.zip.

Two steps each of `finetune --lora 2`, `train lm` and `train codec`, the codes they trained on, and
the config.json of the model they began with.
"""

import dataclasses
import json
import zipfile

import jax
import pytest

from musicgen_jax.config import MusicGenConfig, from_dict, toml
from musicgen_jax.training import codec, lm
from musicgen_jax.training.codec_settings import CodecRunConfig
from musicgen_jax.training.data.shards import CodeShards
from musicgen_jax.training.finetune import FinetuneConfig
from musicgen_jax.training.lm_settings import LMRunConfig, model_config
from musicgen_jax.training.run import Run
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(ROOT / "tests/fixtures/runs.zip") as archive:
        archive.extractall(folder)
    return folder


def restored(folder, config_class, abstract):
    """The settings and the last checkpoint of a run that is resumed."""
    text = (folder / "config.toml").read_text()
    config = toml.parse(text, config_class)
    assert set(text.splitlines()) <= set(toml.dump(config).splitlines())  # and what came since
    fingerprint = json.loads((folder / "run.json").read_text())["fingerprint"]
    with Run(folder, config, fingerprint=fingerprint, resume=True) as run:
        step, state = run.restore(abstract(config))
    assert step == int(state.step) == 2
    assert all(bool(jax.numpy.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))
    return fingerprint


def base_of(old):
    values = json.loads((old / "model.json").read_text())["architecture"]
    return from_dict(MusicGenConfig, values)


def test_finetune_resumes_an_old_run(old):
    def abstract(config):
        state = lm.abstract_state(base_of(old), config.train)
        return dataclasses.replace(state, params=lm.trained(state.params, config.train))

    fingerprint = restored(old / "adapter", FinetuneConfig, abstract)
    assert CodeShards.open(old / "codes").fingerprint == fingerprint


def test_train_lm_resumes_an_old_run(old):
    def abstract(config):
        return lm.abstract_state(model_config(config, base_of(old)), config.training)

    restored(old / "lm", LMRunConfig, abstract)


def test_train_codec_resumes_an_old_run(old):
    def abstract(config):
        return jax.eval_shape(lambda: codec.init(config.codec, config.training))

    restored(old / "codec", CodecRunConfig, abstract)
