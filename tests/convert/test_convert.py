"""The converter without torch: the whole way, strict tables, settings, what is found where."""

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.config import EncodecConfig, T5Config
from musicgen_jax.convert import command, convert, encodec, lm, t5
from musicgen_jax.convert.__main__ import main
from musicgen_jax.convert.pipeline import abstract_params, convert_part
from musicgen_jax.convert.rules import STACK, Rule, Table, apply_table
from musicgen_jax.convert.settings import Part, read_xp_cfg
from musicgen_jax.convert.source import WEIGHT_FILES, files_to_download, open_source
from musicgen_jax.convert.torch_writer import write_torch
from musicgen_jax.errors import UserError
from musicgen_jax.storage import checkpoint
from musicgen_jax.testing import DEBUG
from tests.helpers.official_files import (
    CODEC_CFG,
    LM_CFG,
    audiocraft_codec,
    audiocraft_lm,
    draw,
    lazy,
    t5_state,
    write_audiocraft,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_audiocraft(tmp_path_factory.mktemp("official") / "debug")


def load(path, component, config):
    return checkpoint.load_params(path, component, abstract_params(component, config))


# --- The whole way -----------------------------------------------------------------------------


def test_audiocraft_model(source, tmp_path):
    said = []
    config = convert(source, tmp_path / "ours", log=said.append)
    expected = {"max_duration": 30.0, "name": "debug"}
    assert config == type(config)(DEBUG.t5, DEBUG.lm, DEBUG.encodec, **expected)
    assert [line.split(":")[0] for line in said] == ["t5", "lm", "encodec"]

    state, ours = audiocraft_lm(), load(tmp_path / "ours", "lm", config.lm)
    np.testing.assert_array_equal(ours["emb"]["embedding"][3], state["emb.3.weight"])
    weight = state["transformer.layers.1.cross_attention.in_proj_weight"]
    layer = {str(i): tree for i, tree in ours["transformer"]["layers"].items()}["1"]
    np.testing.assert_array_equal(layer["cross_attention"]["in_proj"]["weight"], weight)

    state, ours = audiocraft_codec(), load(tmp_path / "ours", "encodec", config.encodec)
    name = "decoder.model.1.lstm"
    bias = state[f"{name}.bias_ih_l0"] + state[f"{name}.bias_hh_l0"]
    lstm = {str(i): tree for i, tree in ours["decoder"]["layers"]["1"]["lstm"].items()}
    np.testing.assert_array_equal(lstm["0"]["bias"], bias)
    g, v = (state[f"decoder.model.3.convtr.convtr.weight_{x}"] for x in "gv")
    folded = g * v / np.sqrt((v.astype(np.float64) ** 2).sum((1, 2), keepdims=True))
    weight = ours["decoder"]["layers"]["3"]["weight"]
    np.testing.assert_allclose(weight, folded.transpose(2, 0, 1), rtol=1e-6)
    g, v = (state[f"encoder.model.3.conv.conv.weight_{x}"] for x in "gv")
    folded = g * v / np.sqrt((v.astype(np.float64) ** 2).sum((1, 2), keepdims=True))
    weight = ours["encoder"]["layers"]["3"]["weight"]
    np.testing.assert_allclose(weight, folded.transpose(2, 1, 0), rtol=1e-6)


def test_command_line(source, tmp_path, capsys, monkeypatch):
    arguments = ["convert", str(source), str(tmp_path / "ours"), "--storage", "int8"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--name", "mine"])
    assert main() == 0
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'ours'}\n")
    assert checkpoint.load_config(tmp_path / "ours").name == "mine"
    assert checkpoint.load_info(tmp_path / "ours").components["lm"]["storage"] == "int8"
    monkeypatch.setattr(sys, "argv", arguments)
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "exists already" in error
    assert error.count("\n") == 1


def test_verifying_needs_packages(source, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(UserError, match="needs torch and transformers"):
        command.run(parser.parse_args([str(source), str(tmp_path / "ours"), "--verify"]))
    assert not (tmp_path / "ours").exists()  # said before the work, not after it


def test_importing_the_command_is_cheap():
    code = (
        "import sys, musicgen_jax.convert\n"
        "heavy = {'jax', 'flax', 'orbax', 'torch', 'numpy', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(bool(heavy))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- The tables --------------------------------------------------------------------------------


def lm_part(state):
    return Part(
        "audiocraft",
        {name: lazy(array) for name, array in state.items()},
        read_xp_cfg(LM_CFG),
        "state_dict.bin",
    )


def test_all_faults_in_one_report():
    state = audiocraft_lm()
    config = lm.derive_config(lm_part(state))
    assert config == DEBUG.lm
    del state["emb.2.weight"]
    del state["out_norm.bias"]
    del state["transformer.layers.1.self_attn.in_proj_weight"]
    state["transformer.layers.7.norm1.weight"] = np.ones(16, np.float16)
    state["stranger"] = np.ones(3)
    state["transformer.layers.0.linear1.weight"] = np.ones((24, 15), np.float16)
    state["linears.1.weight"] = np.ones((36, 16), np.float16)  # cannot even be stacked
    state["out_norm.weight"] = np.ones(16, np.int64)
    with pytest.raises(UserError) as caught:
        convert_part("lm", lm_part(state), config)
    head, *lines = str(caught.value).splitlines()
    assert head == (
        "state_dict.bin does not fit the architecture: 3 missing, 2 unexpected, 2 mis-shaped, "
        "1 not a float"
    )
    text = "\n".join(lines)
    for name in (
        "missing: emb.2.weight",
        "missing: out_norm.bias",
        "missing: transformer.layers.1.self_attn.in_proj_weight",
        "unexpected: transformer.layers.7.norm1.weight",
        "unexpected: stranger",
        "mis-shaped: transformer.layers.0.linear1.weight (24, 15)",
        "mis-shaped: linears.0.weight (37, 16), linears.1.weight (36, 16)",
        "not a float: out_norm.weight is of type int64",
    ):
        assert name in text


def test_long_reports_are_cut():
    state = audiocraft_lm() | {f"stranger.{i}": np.ones(1) for i in range(50)}
    with pytest.raises(UserError, match="50 unexpected") as caught:
        convert_part("lm", lm_part(state), DEBUG.lm)
    assert len(str(caught.value).splitlines()) < 12
    assert "and 42 more" in str(caught.value)


@pytest.mark.parametrize("component", ["lm", "encodec", "t5"])
def test_every_key_is_needed_and_no_other_is_taken(component):
    state, config = {
        "lm": (audiocraft_lm(), DEBUG.lm),
        "encodec": (audiocraft_codec(), DEBUG.encodec),
        "t5": (t5_state(), DEBUG.t5),
    }[component]
    tensors = {name: lazy(array) for name, array in state.items()}
    training = ("inited", "cluster_size", "embed_avg")
    table = {"lm": lm.AUDIOCRAFT, "encodec": encodec.table(DEBUG.encodec), "t5": t5.TABLE}
    abstract = abstract_params(component, config)
    apply_table(table[component], tensors, abstract, component)
    for name in tensors:
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        if name.endswith(training):
            apply_table(table[component], rest, abstract, component)
            continue
        with pytest.raises(UserError, match="missing"):
            apply_table(table[component], rest, abstract, component)
        with pytest.raises(UserError, match="1 unexpected"):
            apply_table(table[component], {**tensors, f"{name}.x": tensors[name]}, abstract, "x")


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (("float16", "bfloat16"), "float32"), (("bfloat16", "float32"), "float32"),
        (("float16", "float32"), "float32"), (("bfloat16", "float64"), "float64"),
        (("float16", "float16"), "float16"), (("bfloat16", "bfloat16"), "bfloat16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("table", [lm.TRANSFORMERS, lm.AUDIOCRAFT])
def test_tensors_of_different_types_make_one_parameter(types, expected, table):
    """As after merging an adapter: every rule that takes several tensors."""
    several = [r for r in table.rules if len(r.templates) > 1 or r.transform is STACK]
    rng = np.random.default_rng(0)
    for rule in several:
        keys = [key.replace("{i}", "0").replace("{k}", "0") for key in rule.templates]
        keys += [rule.templates[0].replace("{k}", "1")] * (rule.transform is STACK)
        arrays = [draw(rng, (2, 3), types[n % 2 or -(len(keys) == 1)]) for n in range(len(keys))]
        path = rule.target.replace("{i}", "0")
        abstract = jax.ShapeDtypeStruct(rule.transform(*arrays[:1] * len(keys)).shape, float)
        for name in reversed(path.split("/")):
            abstract = {name: abstract}
        source = {key: lazy(array) for key, array in zip(keys, arrays, strict=True)}
        (value,) = jax.tree.leaves(apply_table(Table((rule,)), source, abstract, "x"))
        assert value.dtype == expected
        exact = rule.transform(*(array.astype(np.float64) for array in arrays))
        np.testing.assert_array_equal(value.astype(np.float64), exact)
    assert several


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("component", ["lm", "encodec", "t5"])
def test_weights_that_are_not_finite_are_refused_by_name(component, dtype, bad):
    make = {"lm": audiocraft_lm, "encodec": audiocraft_codec, "t5": t5_state}[component]
    table = {"lm": lm.AUDIOCRAFT, "encodec": encodec.table(DEBUG.encodec), "t5": t5.TABLE}
    state = {key: value.astype(dtype) for key, value in make().items()}
    training = ("inited", "cluster_size", "embed_avg")
    abstract = abstract_params(component, getattr(DEBUG, component))
    keys = [key for key in state if not key.endswith(training)]
    for key in (keys[0], keys[len(keys) // 2], keys[-1]):
        changed = state | {key: state[key].copy()}
        changed[key].reshape(-1)[1] = bad
        tensors = {name: lazy(array) for name, array in changed.items()}
        expected = f"file: {key} holds NaN or infinity in 1 of {state[key].size} places"
        with pytest.raises(UserError, match=re.escape(expected)) as caught:
            apply_table(table[component], tensors, abstract, "file")
        assert "\n" not in str(caught.value)
    # The statistics of training are not converted: whatever they hold.
    name = next((key for key in state if key.endswith("cluster_size")), None)
    if name:
        tensors = {key: lazy(array) for key, array in state.items()}
        tensors[name] = lazy(np.full_like(state[name], np.nan))
        apply_table(table[component], tensors, abstract, "file")


def test_weights_that_overflow_are_refused_by_name():
    tensors = {"g": lazy(np.ones((1, 1, 1))), "v": lazy(np.full((1, 1, 2), 1e200))}
    table = Table((Rule("weight", ("g", "v"), encodec.convolution),))
    abstract = {"weight": jax.ShapeDtypeStruct((2, 1, 1), float)}
    with pytest.raises(UserError, match="what g makes is not finite"):
        apply_table(table, tensors, abstract, "x")


def test_engine_orders_and_collects():
    table = Table(
        (
            Rule("stack", "item.{k}", lambda *xs: np.stack(xs)),
            Rule("pair/{i}", ("left.{i}", "right.{i}"), lambda left, right: left - right),
        ),
        aliases=((r"^thing\.", "item."),),
        ignored={r"junk.*": "a test"},
    )
    source = {f"item.{k}": lazy(np.full(1, k, np.float32)) for k in range(11, 1, -1)}
    source |= {f"thing.{k}": lazy(np.full(1, k, np.float32)) for k in (1, 0)}
    source |= {"right.0": lazy(np.full(1, 2.0)), "left.0": lazy(np.full(1, 5.0))}
    source["junk.1"] = lazy(np.ones(1))
    shape = jax.ShapeDtypeStruct
    abstract = {"pair": {0: shape((1,), float)}, "stack": shape((12, 1), float)}
    tree = apply_table(table, source, abstract, "x")
    np.testing.assert_array_equal(tree["stack"][:, 0], np.arange(12))
    np.testing.assert_array_equal(tree["pair"][0], [3.0])
    with pytest.raises(UserError, match=r"a second thing\.1"):
        apply_table(table, source | {"item.1": source["thing.1"]}, abstract, "x")
    with pytest.raises(UserError, match=r"unexpected: item\.00"):
        apply_table(table, source | {"item.00": source["thing.1"]}, abstract, "x")


@pytest.mark.parametrize("half", [False, True])
def test_weight_norm_folds_in_float32(half):
    rng = np.random.default_rng(0)
    g, v = np.abs(draw(rng, (3, 1, 1))), draw(rng, (3, 4, 5))
    if half:
        g, v = g.astype(np.float16), (v * 300).astype(np.float16)  # squares overflow half floats
    exact = g.astype(np.float64) * v
    exact /= np.sqrt((v.astype(np.float64) ** 2).sum((1, 2), keepdims=True))
    folded = encodec.fold(g, v)
    assert folded.dtype == np.float32
    np.testing.assert_allclose(folded, exact, rtol=2e-6)
    with pytest.raises(ValueError, match="magnitudes"):
        encodec.fold(g.reshape(1, 3, 1), v)


def test_transposed_convolution_layout():
    """y[t s + j] += x[t] @ weight[j]: torch's definition, written out."""
    rng = np.random.default_rng(0)
    v = draw(rng, (2, 3, 4))  # [in, out, k]
    g = np.sqrt((v**2).sum((1, 2), keepdims=True))
    weight = encodec.transposed_convolution(g, v)
    for j in range(4):
        np.testing.assert_allclose(weight[j], v[:, :, j], rtol=1e-6)


# --- Settings ----------------------------------------------------------------------------------


def test_xp_cfg():
    text = """\
sample_rate: 32000
solver: musicgen
transformer_lm:
  n_q: 4
  num_heads: 16
  activation: gelu
codebooks_pattern:
  modeling: delay
  delay:
    delays:
    - 0
    - 1
    flatten_first: 0
encodec:
  sample_rate: ${sample_rate}
  rate: ${encodec.sample_rate}
  loop: ${encodec.loop}
conditioners:
  description:
    model: t5
    t5:
      name: 't5-base'
  args:
    list:
    - model: x
      other: y
empty: {}
nothing: null
last: true
"""
    values = read_xp_cfg(text)
    assert values["transformer_lm.num_heads"] == "16"
    assert values["codebooks_pattern.delay.delays"] == ["0", "1"]
    assert values["codebooks_pattern.delay.flatten_first"] == "0"
    assert values["encodec.rate"] == values["encodec.sample_rate"] == "32000"
    assert values["conditioners.description.t5.name"] == "t5-base"
    assert values["last"] == "true"
    assert "conditioners.description" not in values


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab:- \n${}[]&*!.'1", max_size=80))
def test_xp_cfg_takes_any_text_or_refuses_it(text):
    try:
        values = read_xp_cfg(text)
    except ValueError as error:
        message = str(error)
        assert message.startswith("its settings are not YAML")
        assert "\n" not in message
        return
    for value in values.values():
        assert isinstance(value, str | list)


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} {{b: *a{i - 1}, c: *a{i - 1}}}\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    "text", ["a: [", "&a {b: *a}", "[" * 10_000, "x: " + "y" * (1 << 18), BOMB, "\0"]
)
def test_settings_that_are_no_settings(tmp_path, text):
    folder = write_audiocraft(tmp_path / "m", lm_cfg=text)
    with pytest.raises(UserError, match=r"state_dict\.bin is refused: its settings") as caught:
        open_source(str(folder))
    assert "\n" not in str(caught.value)


def test_objects_in_settings_are_not_made(tmp_path):
    target = tmp_path / "made"
    for tag in ("!!python/object/apply:os.system", "!!python/name:os.system", "!!int"):
        values = read_xp_cfg(f"a: {tag} ['touch {target}']\n")
        assert values == {"a": [f"touch {target}"]}
    assert not target.exists()


@pytest.mark.parametrize(
    ("lm_cfg", "codec_cfg", "message"),
    [
        ("transformer_lm:\n  num_heads: many\n", CODEC_CFG, "num_heads must be a number"),
        ("transformer_lm:\n  num_heads: 3\n", CODEC_CFG, "divide by 3 heads"),
        ("transformer_lm:\n  num_heads: 0\n", CODEC_CFG, "modulo|zero"),
        ("transformer_lm:\n  positional_embedding: rope\n", CODEC_CFG, "positional_embedding"),
        ("codebooks_pattern:\n  modeling: parallel\n", CODEC_CFG, "modeling = parallel"),
        ("codebooks_pattern:\n  delay:\n    delays:\n    - 1\n", CODEC_CFG, "delays must be 4"),
        (
            "dataset:\n  segment_duration: -3\n",
            CODEC_CFG,
            "segment_duration must be from 0 to 3600",
        ),
        ("dataset:\n  segment_duration: long\n", CODEC_CFG, "segment_duration must be a number"),
        (LM_CFG, "encodec:\n  causal: true\n", "encodec.causal = true"),
        (LM_CFG, "encodec:\n  renormalize: true\n", "levels or segments"),
        (LM_CFG, "encodec:\n  renormalize: sometimes\n", "must be true or false"),
        (LM_CFG, "seanet:\n  norm: time_group_norm\n", "seanet.norm"),
        (LM_CFG, "seanet:\n  true_skip: false\n", "seanet.true_skip"),
    ],
)
def test_unsupported_audiocraft_settings(tmp_path, lm_cfg, codec_cfg, message):
    folder = write_audiocraft(tmp_path / "m", lm_cfg=lm_cfg, codec_cfg=codec_cfg)
    with pytest.raises(UserError, match=message) as caught:
        convert(folder, tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_window_is_as_long_as_the_segments_of_training(tmp_path):
    cfg = f"{LM_CFG}dataset:\n  segment_duration: 10\n"
    folder = write_audiocraft(tmp_path / "m", lm_cfg=cfg)
    assert convert(folder, tmp_path / "ours").max_duration == 10.0


def test_stereo_by_its_delays(tmp_path):
    config = type(DEBUG.lm)(
        dim=16, num_heads=2, num_layers=1, card=37, text_dim=12, ffn_dim=24,
        n_q=8, delays=(0, 0, 1, 1, 2, 2, 3, 3),
    )  # fmt: skip
    state = audiocraft_lm(config)
    folder = write_audiocraft(tmp_path / "m", lm_state=state)
    ours = convert(folder, tmp_path / "ours")
    assert (ours.lm, ours.audio_channels) == (config, 2)


WAVE = "condition_provider.conditioners.self_wav"


def melody_state(bins=12):
    """As officially: no cross-attention, the melody's projection, a window in half precision."""
    state = {k: v for k, v in audiocraft_lm().items() if "cross" not in k}
    rng = np.random.default_rng(4)
    state[f"{WAVE}.output_proj.weight"] = draw(rng, (DEBUG.lm.dim, bins), np.float16)
    state[f"{WAVE}.output_proj.bias"] = draw(rng, (DEBUG.lm.dim,), np.float16)
    state[f"{WAVE}.chroma.spec.window"] = np.hanning(16384).astype(np.float16)
    return state


def test_melody_model(tmp_path):
    state = melody_state()
    folder = write_audiocraft(tmp_path / "m", lm_state=state)
    config = convert(folder, tmp_path / "ours")
    assert (config.lm.conditioning, config.lm.chroma_bins) == ("prepend", 12)
    ours = load(tmp_path / "ours", "lm", config.lm)["chroma_conditioner"]["output_proj"]
    for kind in ("weight", "bias"):
        np.testing.assert_array_equal(ours[kind], state[f"{WAVE}.output_proj.{kind}"])


@pytest.mark.parametrize(
    ("change", "cfg", "message"),
    [
        ({}, "conditioners:\n  self_wav:\n    chroma_stem:\n      radix2_exp: 12\n", "radix2_exp"),
        ({}, "interleave_stereo_codebooks:\n  per_timestep: true\n", "per_timestep"),
        (melody_state(bins=24), "", "melody of 24 pitch classes"),
        (audiocraft_lm(), "", "next to cross-attention"),
        ({f"{WAVE}.chroma.fbanks": np.ones(3, np.float16)}, "", r"chroma\.fbanks"),
    ],
)
def test_other_melody_models_are_refused(tmp_path, change, cfg, message):
    folder = write_audiocraft(tmp_path / "m", lm_state=melody_state() | change, lm_cfg=LM_CFG + cfg)
    with pytest.raises(UserError, match=message):
        convert(folder, tmp_path / "ours")


def transformers_part(state, config):
    config = {"use_causal_conv": False, "use_conv_shortcut": False} | config
    return Part("transformers", {k: lazy(v) for k, v in state.items()}, config, "codec")


@pytest.mark.parametrize(
    "setting",
    [
        {"norm_type": "time_group_norm"}, {"use_conv_shortcut": True},
        {"overlap": 1.0}, {"trim_right_ratio": 2.0}, {"chunk_length_s": 1e-9},
        {"chunk_length_s": float("inf")}, {"normalize": 3}, {"pad_mode": "replicate"},
    ],
)  # fmt: skip
def test_unsupported_codecs(setting):
    names = Table((), encodec._ALIASES)
    state = {names.rename(key): value for key, value in audiocraft_codec().items()}
    good = encodec.derive_config(transformers_part(state, {"sampling_rate": 4000}))
    assert good == DEBUG.encodec
    with pytest.raises(UserError, match=next(iter(setting))):
        encodec.derive_config(transformers_part(state, setting))
    with pytest.raises(UserError, match="is not an EnCodec"):
        encodec.derive_config(transformers_part({"a": np.ones(1)}, {}))


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({}, 16), ({"hidden_size": 1024}, 16), ({"hidden_size": 1536}, 24),
        ({"hidden_size": 2048, "num_attention_heads": 16}, 32),
        ({"hidden_size": 1536, "num_attention_heads": 12}, 12),
        ({"hidden_size": 64, "num_attention_heads": 16}, 16), ({"hidden_size": "x"}, 16),
    ],
)  # fmt: skip
def test_heads_of_the_first_uploads(tmp_path, config, heads):
    name = "decoder.model.decoder.layer_norm.weight"
    safetensors.numpy.save_file({name: np.ones(3)}, tmp_path / "model.safetensors")
    document = {"model_type": "musicgen", "decoder": {"ffn_dim": 8} | config}
    (tmp_path / "config.json").write_text(json.dumps(document))
    settings = open_source(str(tmp_path)).parts["lm"].settings
    assert settings["num_attention_heads"] == heads


def test_gated_t5_is_refused():
    part = Part("transformers", {}, {"feed_forward_proj": "gated-gelu"}, "t5")
    with pytest.raises(UserError, match="feed_forward_proj = gated-gelu"):
        t5.derive_config(part)


def test_either_name_of_the_embedding():
    state = t5_state()
    both = state | {"encoder.embed_tokens.weight": state["shared.weight"]}
    other = {k: v for k, v in both.items() if k != "shared.weight"}
    trees = []
    for tensors in (state, both, other):
        part = Part("transformers", {k: lazy(v) for k, v in tensors.items()}, {}, "t5")
        config = t5.derive_config(part)
        assert config == T5Config(**(vars(DEBUG.t5) | {"relative_attention_max_distance": 128}))
        trees.append(convert_part("t5", part, config))
    for tree in trees[1:]:
        jax.tree.map(np.testing.assert_array_equal, tree, trees[0])


# --- Where things are --------------------------------------------------------------------------


def test_a_single_file(source, tmp_path):
    """A file is converted with what lies beside it."""
    config = convert(source / "state_dict.bin", tmp_path / "x", encodec_from=str(source))
    assert config.lm == DEBUG.lm
    parts = convert(source / "compression_state_dict.bin", tmp_path / "codec", name="mine")
    assert checkpoint.load_info(tmp_path / "codec").source["name"] == "mine"
    assert parts == {"encodec": DEBUG.encodec}


def test_missing_places(source, tmp_path):
    with pytest.raises(UserError, match="not a file, a folder, or the name of a Hub repository"):
        convert(tmp_path / "absent" / "model" / "x", tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no weights: expected state_dict\.bin or"):
        convert(tmp_path / "empty", tmp_path / "ours")
    with pytest.raises(UserError, match="holds no t5, only lm, encodec"):
        convert(source, tmp_path / "ours", t5_from=str(source))
    os.mkdir(tmp_path / "bare")
    safetensors.numpy.save_file(t5_state(), tmp_path / "bare" / "model.safetensors")
    with pytest.raises(UserError, match=r"spiece\.model"):
        convert(source, tmp_path / "ours", t5_from=str(tmp_path / "bare"))
    assert not (tmp_path / "ours").exists()


def test_components_that_do_not_fit(source, tmp_path):
    other = write_audiocraft(tmp_path / "other")
    codec = audiocraft_codec(EncodecConfig(**(vars(DEBUG.encodec) | {"bins": 36})))
    write_torch(other / "compression_state_dict.bin", {"best_state": codec, "xp.cfg": CODEC_CFG})
    with pytest.raises(UserError, match="the LM knows 37 codes, but the codec has 36"):
        convert(source, tmp_path / "ours", encodec_from=str(other))


class FakeHub(types.ModuleType):
    """Serves folders as repositories."""

    def __init__(self, repos):
        super().__init__("huggingface_hub")
        self.repos, self.asked = repos, []

    def HfApi(self):
        return self

    def model_info(self, repo, revision=None):
        if repo not in self.repos:
            raise OSError(f"404: no {repo}\nsecond line")
        files = [types.SimpleNamespace(rfilename=f.name) for f in self.repos[repo].iterdir()]
        return types.SimpleNamespace(sha=revision or "c0ffee", siblings=files)

    def snapshot_download(self, repo, *, revision, allow_patterns):
        self.asked.append((repo, revision, allow_patterns))
        return str(self.repos[repo])


def test_hub(source, tmp_path, monkeypatch):
    repo = write_audiocraft(tmp_path / "hub")
    os.rename(repo / "t5-base", tmp_path / "text")
    pointer = {"pretrained": "facebook/encodec_32khz", "exported": True}
    write_torch(repo / "compression_state_dict.bin", pointer)
    codec = tmp_path / "codec"
    codec.mkdir()
    os.link(source / "compression_state_dict.bin", codec / "pytorch_model.bin")
    hub = FakeHub(
        {
            "facebook/musicgen-small": repo,
            "google-t5/t5-base": tmp_path / "text",
            "facebook/encodec_32khz": codec,
        }
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    config = convert("facebook/musicgen-small", tmp_path / "ours")
    assert config.name == "facebook/musicgen-small"
    said = checkpoint.load_info(tmp_path / "ours").source
    assert said == {
        "name": "facebook/musicgen-small",
        "revision": "c0ffee",
        "components": {
            "t5": "google-t5/t5-base",
            "lm": "facebook/musicgen-small",
            "encodec": "facebook/encodec_32khz",
        },
    }
    asked = {repo: patterns for repo, _, patterns in hub.asked}
    assert asked["facebook/musicgen-small"] == ["state_dict.bin", "compression_state_dict.bin"]
    with pytest.raises(UserError, match=r"could not download facebook/none .* 404") as caught:
        convert("facebook/none", tmp_path / "none")
    assert "\n" not in str(caught.value)


def test_hub_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "musicgen-jax\[hub\]"'):
        convert("facebook/musicgen-small", tmp_path / "ours")


@pytest.mark.parametrize("weights", WEIGHT_FILES)
def test_downloads_are_bounded(weights):
    names = {weights, "config.json", "README.md", "flax_model.msgpack", "model.fp32.safetensors"}
    patterns = files_to_download(names)
    asked = {name for name in names if any(fnmatch.fnmatch(name, one) for one in patterns)}
    assert asked == {weights, "config.json"}
    assert "spiece.model" in patterns
    stem, suffix = weights.removesuffix(".index.json").split(".")
    shard = f"{stem}-00001-of-00002.{suffix}"
    in_shards = weights.endswith(".index.json")
    assert any(fnmatch.fnmatch(shard, one) for one in patterns) == in_shards
    assert files_to_download({*names, "state_dict.bin"})[0] == "state_dict.bin"
