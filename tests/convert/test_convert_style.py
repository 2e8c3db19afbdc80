"""Converting the style model: what is refused, and where MERT comes from."""

import re
import shutil

import numpy as np
import pytest

from musicgen_jax.config import MertConfig
from musicgen_jax.convert import convert, lm, mert, source, style
from musicgen_jax.convert.pipeline import convert_part
from musicgen_jax.convert.source import open_source
from musicgen_jax.errors import UserError
from tests.helpers.official_files import lazy
from tests.helpers.paths import GOLDENS

OTHERS = {
    "t5_from": str(GOLDENS / "mono/t5-base"),
    "encodec_from": str(GOLDENS / "mono/audiocraft"),
}
WAVE = "condition_provider.conditioners.self_wav"


@pytest.fixture(scope="module")
def part():
    return open_source(str(GOLDENS / "style")).parts["lm"]


@pytest.fixture(scope="module")
def mert_part():
    return open_source(str(GOLDENS / "style/MERT-v1-95M")).parts["mert"]


def test_the_training_state_is_ignored_and_nothing_else(part):
    """Of the file's keys for the style: 3 of each book and 1 of the batch norm."""
    ours = [key for key in part.tensors if key.startswith(WAVE)]
    ignored = [key for key in ours if lm.STYLE.ignores(key)]
    assert {key.rsplit(".", 1)[1] for key in ignored} == {
        "inited", "cluster_size", "embed_avg", "num_batches_tracked",
    }  # fmt: skip
    # Eight layers in the official file, six books: 95 keys.
    assert len(ours) - 8 * 2 - 4 * 3 + 8 * 8 + 4 * 6 == 95
    assert all(remade.why for remade in style.REMADE)


def test_statistics_are_folded_in_full_precision(part):
    config = lm.derive_config(part)
    tree = convert_part("lm", part, config)["style_conditioner"]
    variance = part.tensors[f"{WAVE}.batch_norm.running_var"].read()
    assert variance.dtype == np.float16
    assert tree["batch_norm"]["scale"].dtype == np.float32
    expected = (variance.astype(np.float64) + 1e-5) ** -0.5
    np.testing.assert_allclose(tree["batch_norm"]["scale"], expected, rtol=1e-6)
    for k in range(config.style.n_q):
        book = part.tensors[f"{WAVE}.rvq.vq.layers.{k}._codebook.embed"].read()
        np.testing.assert_array_equal(tree["rvq"]["embed"][k], book)


def test_attention_of_torch_itself(part):
    """Checkpoints of older training code name torch's module in the key."""
    tensors = {key.replace("self_attn.", "self_attn.mha."): t for key, t in part.tensors.items()}
    assert lm.derive_config(part._replace(tensors=tensors)) == lm.derive_config(part)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_name", "encodec"),
        ("batch_norm", "false"),
        ("use_middle_of_segment", "true"),
        ("transformer_scale", "none"),
    ],
)
def test_other_style_conditioners_are_refused(part, name, value):
    name = f"conditioners.self_wav.style.{name}"
    changed = part._replace(settings=part.settings | {name: value})
    with pytest.raises(UserError, match=f"{name} = {value}, which is not supported"):
        lm.derive_config(changed)


@pytest.mark.parametrize("key", ["embed.bias", "rvq.vq.layers.1._codebook.embed"])
def test_a_missing_tensor_is_named(part, key):
    tensors = {name: t for name, t in part.tensors.items() if name != f"{WAVE}.{key}"}
    changed = part._replace(tensors=tensors)
    with pytest.raises(UserError, match=re.escape(f"{WAVE}.{key}")):
        convert_part("lm", changed, lm.derive_config(part))


def test_an_unknown_tensor_is_named(part):
    extra = f"{WAVE}.rvq.vq.layers.0.project_in.weight"
    changed = part._replace(tensors=part.tensors | {extra: lazy(np.ones((16, 16), np.float32))})
    with pytest.raises(UserError, match=re.escape(extra)):
        convert_part("lm", changed, lm.derive_config(part))


def test_a_conditioner_of_another_shape_is_one_error(part):
    changed = part._replace(tensors=part.tensors | {style.KEY: lazy(np.ones(3, np.float32))})
    with pytest.raises(UserError, match="embed/weight must have 2 axes"):
        lm.derive_config(changed)


# --- MERT --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deepnorm", True),
        ("attention_relax", 32.0),
        ("feature_extractor_cqt", True),
        ("conv_pos_batch_norm", True),
        ("feat_extract_norm", "layer"),
        ("do_stable_layer_norm", True),
        ("conv_bias", True),
        ("hidden_act", "relu"),
        ("layer_norm_eps", 1e-12),
    ],
)
def test_other_networks_than_that_of_95m_are_refused(mert_part, name, value):
    with pytest.raises(UserError, match=f"{name} = .*, which is not supported"):
        mert.derive_config(mert_part._replace(settings={**mert_part.settings, name: value}))


@pytest.mark.parametrize("strides", ["5", [5, 2], [5, 2, 2, 2, 2, 2, -2], [5, 2, 2, 2, 2, 2, None]])
def test_strides_that_make_no_sense(mert_part, strides):
    with pytest.raises(UserError, match=r"conv_stride|of one length"):
        mert.derive_config(mert_part._replace(settings={"conv_stride": strides}))


def test_a_file_that_lacks_sizes(mert_part):
    tensors = {key: t for key, t in mert_part.tensors.items() if "layers.0." not in key}
    with pytest.raises(UserError, match="is not MERT-v1-95M's network"):
        mert.derive_config(mert_part._replace(tensors=tensors))


def test_mert_alone(tmp_path):
    configs = convert(GOLDENS / "style/MERT-v1-95M", tmp_path / "mert")
    assert isinstance(configs, dict)
    assert isinstance(configs["mert"], MertConfig)
    assert "MERT" in (tmp_path / "mert" / "LICENSE").read_text()


def test_where_mert_comes_from(tmp_path, monkeypatch):
    """Beside the file, from a given place, or from the Hub, which the message names."""
    shutil.copytree(GOLDENS / "style", tmp_path / "style")
    shutil.move(tmp_path / "style/MERT-v1-95M", tmp_path / "elsewhere")

    def download(place, revision=None):
        raise UserError(f"no network to fetch {place}")

    monkeypatch.setattr(source, "download", download)
    lone = tmp_path / "style"
    with pytest.raises(UserError, match=r"give --mert PATH \(no network .* m-a-p/MERT-v1-95M"):
        convert(lone, tmp_path / "out", **OTHERS)
    found = convert(lone, tmp_path / "out", mert_from=str(tmp_path / "elsewhere"), **OTHERS)
    assert found.mert is not None
    with pytest.raises(UserError, match="holds no mert, only t5"):
        convert(lone, tmp_path / "x", mert_from=OTHERS["t5_from"], **OTHERS)
    with pytest.raises(UserError, match="is not a style model: leave out --mert"):
        convert(GOLDENS / "mono/audiocraft", tmp_path / "x", mert_from=str(lone))
