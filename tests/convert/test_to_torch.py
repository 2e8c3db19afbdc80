"""Back to the official formats: the files that PyTorch's own code wrote, made again."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from musicgen_jax.commands import cli
from musicgen_jax.convert import convert, encodec, export_torch, lm, official, style, t5
from musicgen_jax.convert.files import read_weights
from musicgen_jax.convert.inverse import invert_table
from musicgen_jax.convert.official import to_yaml
from musicgen_jax.convert.pipeline import abstract_params
from musicgen_jax.convert.rules import Rule, Table, apply_table
from musicgen_jax.convert.settings import Part, read_xp_cfg
from musicgen_jax.convert.torch_zip import read_torch
from musicgen_jax.errors import UserError
from musicgen_jax.storage import checkpoint, hub
from musicgen_jax.testing import DEBUG, random_params, save_random_model
from tests.helpers.official_files import lazy
from tests.helpers.paths import GOLDENS

T5, CODEC = {"t5_from": str(GOLDENS / "mono/t5-base")}, GOLDENS / "audiocraft/text"
SOURCES = {  # files that audiocraft or transformers wrote, and where the rest of the model is
    "audiocraft/text": T5,
    "audiocraft/stereo": T5 | {"encodec_from": str(CODEC)},
    "audiocraft/melody": T5 | {"encodec_from": str(CODEC)},
    "style": T5 | {"encodec_from": str(CODEC)},
    "mono/transformers": {},
    "stereo/transformers": {},
}
# What converting does not keep: any numbers that mean the same stand in its place.
LOST = (
    *("weight_g", "weight_v", "original0", "original1"),
    *("bias_ih_l0", "bias_hh_l0", "bias_ih_l1", "bias_hh_l1"),
    *("cluster_size", "embed_avg", "num_batches_tracked"),
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """name -> the folder of the converted model."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("ours") / "model"
            convert(GOLDENS / name, made[name], **SOURCES[name])
        return made[name]

    return get


def official_tensors(folder):
    """All tensors of an official folder, its files' names in front of their keys."""
    found = {}
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        if (folder / name).is_file():
            state = read_torch(folder / name).get("best_state", {})
            found |= {f"{name}:{key}": tensor.read() for key, tensor in state.items()}
    if (folder / "model.safetensors").is_file():
        state = read_weights(folder / "model.safetensors")
        found |= {key: tensor.read() for key, tensor in state.items()}
    return found


def params(folder):
    info = checkpoint.load_info(folder)
    return {
        name: checkpoint.load_params(folder, name, abstract_params(name, part), keep_dtypes=True)
        for name, part in info.parts.items()
    }


def assert_same_bits(tree, other):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), tree, other)
    assert jax.tree.map(lambda x: x.dtype, tree) == jax.tree.map(lambda x: x.dtype, other)


def bits(x):
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


# --- The whole way -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_official_files_come_back(name, converted, tmp_path):
    """Keys, shapes, types, and the bytes of all that the model is."""
    family = "transformers" if name.endswith("transformers") else "audiocraft"
    export_torch(converted(name), tmp_path / "out", format=family)
    theirs, ours = official_tensors(GOLDENS / name), official_tensors(tmp_path / "out")
    if (GOLDENS / name).parent.name == "audiocraft" or name == "style":  # they point to their codec
        theirs |= {k: v for k, v in official_tensors(CODEC).items() if k.startswith("compression")}
    assert ours.keys() == theirs.keys()
    equal = 0
    for key, tensor in theirs.items():
        assert ours[key].shape == tensor.shape, key
        assert ours[key].dtype == tensor.dtype, key
        if key.endswith(".chroma.spec.window"):
            # One of 16,384 samples lies between two numbers of half precision.
            assert np.sum(ours[key] != tensor) <= 1
            np.testing.assert_allclose(ours[key], tensor, atol=2**-24)
        elif not key.endswith(LOST):
            np.testing.assert_array_equal(bits(ours[key]), bits(tensor), key)
            equal += 1
    assert equal > 30


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("style", "audiocraft"),
        ("audiocraft/melody", "transformers"),
        ("mono/transformers", "audiocraft"),
        pytest.param("audiocraft/text", "transformers", marks=pytest.mark.slow),
        pytest.param("audiocraft/stereo", "transformers", marks=pytest.mark.slow),
        pytest.param("audiocraft/stereo", "audiocraft", marks=pytest.mark.slow),
        pytest.param("audiocraft/melody", "audiocraft", marks=pytest.mark.slow),
    ],
)
def test_the_model_comes_back(name, family, converted, tmp_path):
    """Every parameter of every component and the config, through either format."""
    model = converted(name)
    export_torch(model, tmp_path / "out", format=family)
    config = convert(tmp_path / "out", tmp_path / "again", name="model")
    before = checkpoint.load_config(model)
    assert config == type(config)(**{**vars(before), "name": "model"})
    assert_same_bits(params(model), params(tmp_path / "again"))
    texts = [folder / checkpoint.TOKENIZER for folder in (model, tmp_path / "again")]
    assert texts[0].read_bytes() == texts[1].read_bytes()
    # And from there on not a byte changes any more.
    export_torch(tmp_path / "again", tmp_path / "twice", format=family)
    assert_same_bits(official_tensors(tmp_path / "out"), official_tensors(tmp_path / "twice"))


@pytest.mark.parametrize("family", ["24khz", "48khz"])
def test_a_codec_alone(family, tmp_path):
    source = GOLDENS / "codecs" / family / "transformers"
    convert(source, tmp_path / "ours")
    export_torch(tmp_path / "ours", tmp_path / "out", format="transformers")
    rename = encodec.table(checkpoint.load_info(tmp_path / "ours").parts["encodec"]).rename
    theirs, ours = (
        {rename(key): (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}
        for tensors in (official_tensors(source), official_tensors(tmp_path / "out"))
    )
    assert ours == theirs
    convert(tmp_path / "out", tmp_path / "again")
    assert_same_bits(params(tmp_path / "ours"), params(tmp_path / "again"))
    infos = [checkpoint.load_info(tmp_path / folder).parts for folder in ("ours", "again")]
    assert infos[0] == infos[1]


def test_int8_storage_is_written_as_the_floats_it_stands_for(converted, tmp_path):
    convert(GOLDENS / "audiocraft/text", tmp_path / "int8", storage="int8", **T5)
    export_torch(tmp_path / "int8", tmp_path / "out")
    convert(tmp_path / "out", tmp_path / "again")
    assert_same_bits(params(tmp_path / "int8"), params(tmp_path / "again"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("component", ["encodec", "lm", "t5"])
def test_half_precision_comes_back_as_the_same_numbers(component, dtype):
    """What weight norm and sums compute is float32 then."""
    config = getattr(DEBUG, component)
    tables = {"encodec": encodec.table, "lm": lm.audiocraft_table, "t5": lambda _: t5.TABLE}
    table = tables[component](config)
    abstract = abstract_params(component, config)
    tree = jax.tree.map(lambda x: np.asarray(x).astype(dtype), random_params(abstract))
    tensors = {key: lazy(value) for key, value in invert_table(table, tree, "x").items()}
    again = apply_table(table, tensors, abstract, "x")
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(bits(np.asarray(x, y.dtype)), bits(y)),
        tree,
        again,
    )


def test_the_bundled_model_is_written_and_comes_back(tmp_path, capsys):
    """Its codec is stored in half precision."""
    assert cli.main(["export-torch", "nano", str(tmp_path / "out")]) == 0
    config = convert(tmp_path / "out", tmp_path / "again", name="nano")
    assert config == checkpoint.load_config(hub.find_model("nano"))
    before, after = params(hub.find_model("nano")), params(tmp_path / "again")
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.asarray(x, y.dtype), y), before, after
    )


def test_the_window_comes_back(converted, tmp_path):
    """With it the length of a melody model's chroma."""
    model = shutil.copytree(converted("audiocraft/melody"), tmp_path / "model")
    document = json.loads((model / "config.json").read_text())
    document["architecture"]["max_duration"] = 12
    (model / "config.json").write_text(json.dumps(document))
    export_torch(model, tmp_path / "out", format="transformers")
    assert convert(tmp_path / "out", tmp_path / "again").max_duration == 12


@pytest.mark.parametrize("seconds", [0.5, 7.5, 10, 30, 3600])
def test_every_window_is_written_as_it_is_read(seconds):
    config = dataclasses.replace(DEBUG, max_duration=seconds)
    written = read_xp_cfg(official.to_yaml(official.lm_settings(config)))
    assert lm.max_duration(Part("audiocraft", {}, written, "x")) == seconds
    encodec = dataclasses.replace(config.encodec, bins=64)
    config = dataclasses.replace(
        config, encodec=encodec, lm=dataclasses.replace(config.lm, card=64)
    )
    written = official.model_config(config, "float32")
    assert lm.max_duration(Part("transformers", {}, written, "x")) == seconds


# --- What cannot be written --------------------------------------------------------------------


def test_what_transformers_does_not_know_is_refused(converted, tmp_path):
    with pytest.raises(UserError, match="no style model: write it as --format audiocraft"):
        export_torch(converted("style"), tmp_path / "out", format="transformers")
    assert not list(tmp_path.iterdir())


def test_codecs_that_transformers_does_not_load_are_refused(tmp_path):
    """It knows numbers of codes that are powers of two."""
    save_random_model(tmp_path / "model", DEBUG)
    with pytest.raises(UserError, match="power of two, not 37: write it as --format audiocraft"):
        export_torch(tmp_path / "model", tmp_path / "out", format="transformers")
    assert not (tmp_path / "out").exists()
    export_torch(tmp_path / "model", tmp_path / "out")


def test_what_is_there_stays(converted, tmp_path):
    model = converted("mono/transformers")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="exists already"):
            export_torch(model, tmp_path / "out", overwrite=overwrite)
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "letter.txt"]
    export_torch(model, tmp_path / "new")
    with pytest.raises(UserError, match="choose another folder"):
        export_torch(model, tmp_path / "new")
    export_torch(model, tmp_path / "new", overwrite=True, format="transformers")
    assert (tmp_path / "new" / "model.safetensors").is_file()
    assert not (tmp_path / "new" / "state_dict.bin").exists()


def test_command_line(converted, tmp_path, capsys):
    model = str(converted("mono/transformers"))
    assert cli.main(["export-torch", model, str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'out'}\n")
    assert cli.main(["export-torch", str(tmp_path / "none"), str(tmp_path / "x")]) == 2
    assert "no model" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out" / "t5-base")
    assert cli.main(["export-torch", str(tmp_path / "out"), str(tmp_path / "x")]) == 2
    assert "holds PyTorch weights" in capsys.readouterr().err


def test_no_torch_is_loaded(converted, tmp_path):
    code = (
        "import sys\nfrom musicgen_jax.convert import export_torch\n"
        "export_torch(sys.argv[1], sys.argv[2], format='transformers')\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", code, converted("mono/transformers"), tmp_path / "out"]
    assert subprocess.run(arguments, check=False).returncode == 0


# --- The transforms ----------------------------------------------------------------------------

FLOATS = st.floats(-1e6, 1e6, width=32).map(lambda x: x if x == 0 or abs(x) > 1e-15 else 0.0)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=FLOATS,
    )
)
def test_weights_survive_weight_norm(weight):
    """Also channels that are nothing, and minus zeros."""
    for transform in (encodec.convolution, encodec.transposed_convolution):
        again = transform(*transform.inverse(weight))
        np.testing.assert_array_equal(bits(again), bits(weight))


def test_a_weight_too_small_for_its_square_is_refused():
    table = Table((Rule("weight", ("g", "v"), encodec.convolution),))
    with pytest.raises(UserError, match="no tensors of the official format make weight exactly"):
        invert_table(table, {"weight": np.full((1, 1, 1), 1e-30, np.float32)}, "x")


def test_every_variance_of_half_precision_comes_back():
    """All that an official file can hold."""
    variance = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
    deviation = style.inverse_deviation(variance)
    table = Table((Rule("scale", "var", next(
        rule.transform for rule in style.RULES if rule.target.endswith("batch_norm/scale")
    )), Rule("mean", "mean")))  # fmt: skip
    tree = {"scale": deviation, "mean": np.zeros(1, np.float16)}
    made = invert_table(table, tree, "x")["var"]
    assert made.dtype == np.float16
    np.testing.assert_array_equal(style.inverse_deviation(made), deviation)


def test_a_place_that_the_format_lacks():
    with pytest.raises(UserError, match="no place for strange/weight"):
        invert_table(Table(()), {"strange": {"weight": np.ones(3)}}, "x")


def test_settings_are_read_as_they_were_written():
    written = {"a": {"b": 1, "c": None, "d": [0, 1.5], "e": {}}, "f": True, "g": "//x/y", "h": []}
    assert read_xp_cfg(to_yaml(written)) == {
        "a.b": "1", "a.c": "null", "a.d": ["0", "1.5"], "a.e": "{}", "f": "true", "g": "//x/y",
        "h": "[]",
    }  # fmt: skip


def test_the_library_reads_our_safetensors(converted, tmp_path):
    export_torch(converted("mono/transformers"), tmp_path / "out", format="transformers")
    file = tmp_path / "out" / "model.safetensors"
    theirs = safetensors.numpy.load_file(file)
    assert_same_bits(theirs, official_tensors(tmp_path / "out"))
    with safetensors.safe_open(file, framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
