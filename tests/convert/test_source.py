"""What is found in a folder: every file and every tensor is used, or the user is told."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from musicgen_jax.commands import cli
from musicgen_jax.convert import convert
from musicgen_jax.convert.pipeline import abstract_params, find_parts
from musicgen_jax.convert.source import open_source
from musicgen_jax.convert.torch_writer import write_torch
from musicgen_jax.errors import UserError
from musicgen_jax.storage import checkpoint
from musicgen_jax.testing import DEBUG
from tests.helpers.official_files import (
    CODEC_CFG,
    LM_CFG,
    audiocraft_codec,
    audiocraft_lm,
    t5_state,
    write_audiocraft,
    write_t5,
)
from tests.helpers.paths import GOLDENS

WRAPPERS = {
    "DataParallel": (lambda key: f"module.{key}", ["module."]),
    "Lightning": (lambda key: f"model.{key}", ["model."]),
    "torch.compile": (lambda key: f"_orig_mod.{key}", ["_orig_mod."]),
    "DataParallel of a compiled model": (
        lambda key: f"module._orig_mod.{key}",
        ["_orig_mod.", "module."],
    ),
    "a compiled part": (
        lambda key: re.sub(r"^(transformer|encoder|shared)\.", r"\1._orig_mod.", key),
        ["_orig_mod."],
    ),
    "FSDP": (
        lambda key: re.sub(r"\.(\d+)\.", r".\1._fsdp_wrapped_module.", f"model.{key}", count=1),
        ["_fsdp_wrapped_module.", "model."],
    ),
}
STATES = {"lm": audiocraft_lm, "encodec": audiocraft_codec, "t5": t5_state}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("component", STATES)
def test_prefixes_of_wrappers_are_removed_and_told(component, wrapper, tmp_path):
    rename, prefixes = WRAPPERS[wrapper]
    state = STATES[component]()
    wrapped = {rename(key): value for key, value in state.items()}
    if component == "t5":
        path = tmp_path / "pytorch_model.bin"
        write_torch(path, wrapped)
    else:
        path = tmp_path / "checkpoint.th"
        write_torch(path, {"best_state": {"model": wrapped}, "xp.cfg": ""})
    source = open_source(str(tmp_path))
    assert list(source.parts) == [component]
    assert source.parts[component].tensors.keys() == state.keys()
    removed = [word for word in prefixes if any(word in key for key in wrapped)]
    assert source.notes == [f"{path.name}: removed {', '.join(removed)} from the keys"]


@pytest.mark.parametrize("family", ["audiocraft", "transformers"])
def test_a_wrapped_model_converts_to_the_same(family, tmp_path):
    said = []
    if family == "audiocraft":
        plain = write_audiocraft(tmp_path / "plain")
        state = {f"module.{key}": value for key, value in audiocraft_lm().items()}
        wrapped = write_audiocraft(tmp_path / "wrapped", lm_state=state)
    else:
        plain = GOLDENS / "mono/transformers"
        wrapped = shutil.copytree(plain, tmp_path / "wrapped")
        state = safetensors.numpy.load_file(plain / "model.safetensors")
        state = {f"module.{key}": value for key, value in state.items()}
        safetensors.numpy.save_file(state, wrapped / "model.safetensors")
    convert(plain, tmp_path / "ours", name="x")
    config = convert(wrapped, tmp_path / "again", name="x", log=said.append)
    assert config == checkpoint.load_config(tmp_path / "ours")
    assert "removed module. from the keys" in said[0]
    trees = [
        checkpoint.load_params(path, "lm", abstract_params("lm", config.lm))
        for path in (tmp_path / "ours", tmp_path / "again")
    ]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_a_wrapper_around_some_keys_is_a_fault(tmp_path, capsys):
    state = {k.replace("emb.", "module.emb."): v for k, v in audiocraft_lm().items()}
    folder = write_audiocraft(tmp_path / "m", lm_state=state)
    assert cli.main(["convert", str(folder), str(tmp_path / "ours")]) == 2
    assert "emb.0.weight" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()
    twice = audiocraft_lm() | {"_orig_mod.emb.0.weight": np.ones(3, np.float16)}
    write_torch(folder / "state_dict.bin", {"best_state": twice})
    with pytest.raises(UserError, match=r"holds emb\.0\.weight twice"):
        convert(folder, tmp_path / "ours")


def test_a_bare_state_dict_is_converted_and_its_settings_are_told(tmp_path):
    said = []
    folder = write_audiocraft(tmp_path / "m")
    write_torch(folder / "state_dict.bin", audiocraft_lm())
    found = find_parts(str(folder), log=said.append)
    assert list(found.parts) == ["t5", "lm", "encodec"]
    assert found.parts["lm"].family == "audiocraft"
    assert said == [
        "m: state_dict.bin: no settings; assuming those of the official models",
    ]


@pytest.mark.parametrize(
    "package",
    [
        {"best_state": {"net.0.weight": np.ones(3, np.float32)}, "xp.cfg": ""},
        {"net.0.weight": np.ones(3, np.float32)},
        {"best_state": t5_state(), "xp.cfg": ""},
    ],
)
@pytest.mark.parametrize("name", ["state_dict.bin", "compression_state_dict.bin"])
def test_a_file_of_a_pair_that_is_no_part_of_the_model_is_refused(package, name, tmp_path):
    folder = write_audiocraft(tmp_path / "m")
    write_torch(folder / name, package)
    with pytest.raises(
        UserError, match=f"{name} holds no .*MusicGen.* weights, but [a-z.0]+"
    ) as it:
        convert(folder, tmp_path / "ours")
    assert "\n" not in str(it.value)


def test_two_files_of_one_component_are_refused(tmp_path):
    folder = write_audiocraft(tmp_path / "m")
    shutil.copy(folder / "compression_state_dict.bin", folder / "state_dict.bin")
    with pytest.raises(UserError, match=r"several models of EnCodec, .*: name one of the files"):
        convert(folder, tmp_path / "ours")


def test_tensors_of_no_component_are_in_the_report(tmp_path):
    folder = shutil.copytree(GOLDENS / "mono/transformers", tmp_path / "m")
    state = safetensors.numpy.load_file(folder / "model.safetensors")
    strangers = {f"value_head.{i}.weight": np.ones(2, np.float32) for i in range(3)}
    safetensors.numpy.save_file(state | strangers, folder / "model.safetensors")
    with pytest.raises(UserError, match="3 unexpected") as caught:
        convert(folder, tmp_path / "ours")
    assert all(f"unexpected: {name}" in str(caught.value) for name in strangers)


def test_all_of_a_shard_is_read(tmp_path):
    state = {k: np.ascontiguousarray(v) for k, v in t5_state().items()}
    stranger = {"stranger": np.ones(2, np.float32)}
    safetensors.numpy.save_file(state | stranger, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "a.safetensors")}))
    assert "stranger" in open_source(str(tmp_path)).parts["t5"].tensors
    safetensors.numpy.save_file(stranger, tmp_path / "b.safetensors")
    weight_map = dict.fromkeys(state, "a.safetensors") | {"stranger": "b.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(
        UserError, match=r"b\.safetensors holds stranger, and so does an earlier shard"
    ):
        open_source(str(tmp_path))


def test_files_that_are_left_alone_are_named(tmp_path):
    """A clone of a repository holds a model twice: in transformers' form and in audiocraft's."""
    folder = shutil.copytree(GOLDENS / "mono/transformers", tmp_path / "m")
    write_torch(folder / "state_dict.bin", {"best_state": audiocraft_lm()})
    source = open_source(str(folder))
    assert source.parts["lm"].family == "transformers"
    assert source.notes == ["read model.safetensors, not state_dict.bin"]


def test_a_pair_next_to_t5s_file_is_read(tmp_path):
    write_t5(tmp_path / "m")
    package = {"best_state": audiocraft_lm(), "xp.cfg": LM_CFG}
    write_torch(tmp_path / "m/state_dict.bin", package)
    package = {"best_state": audiocraft_codec(), "xp.cfg": CODEC_CFG}
    write_torch(tmp_path / "m/compression_state_dict.bin", package)
    source = open_source(str(tmp_path / "m"))
    assert set(source.parts) == {"t5", "lm", "encodec"}
    assert not source.notes


def test_a_revision_is_for_the_hub(tmp_path):
    with pytest.raises(UserError, match="a revision is for Hub repositories"):
        open_source(str(write_audiocraft(tmp_path / "m")), "main")


# --- What people have in place of a model ------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4444\nsize 2364430680\n"


@pytest.mark.parametrize("name", ["model.safetensors", "state_dict.bin", "pytorch_model.bin"])
def test_pointers_of_git_lfs(name, tmp_path):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=r"pointer of Git LFS.*git lfs pull"):
        open_source(str(tmp_path))


def test_pointers_of_git_lfs_among_shards_and_tokenizers(tmp_path):
    (tmp_path / "a.bin").write_bytes(POINTER)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.bin"}}))
    with pytest.raises(UserError, match=r"a\.bin is a pointer of Git LFS"):
        open_source(str(tmp_path))
    write_t5(tmp_path / "t5")
    (tmp_path / "t5/spiece.model").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"spiece\.model is a pointer of Git LFS"):
        open_source(str(tmp_path / "t5"))


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("vggish_model.ckpt", "57fb808b247547db"),
        ("model.ckpt.index", "57fb808b247547db"),
        ("model.ckpt.data-00000-of-00001", "00"),
    ],
)
def test_checkpoints_of_tensorflow(name, end, tmp_path):
    (tmp_path / name).write_bytes(bytes(100) + bytes.fromhex(end))
    with pytest.raises(UserError, match=r"checkpoint of TensorFlow.*vggish-10086976\.pth"):
        open_source(str(tmp_path / name))


def test_a_tokenizer_of_another_kind(tmp_path):
    write_t5(tmp_path / "t5")
    (tmp_path / "t5/spiece.model").unlink()
    (tmp_path / "t5/tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"spiece\.model.*tokenizer\.json.*copy it there from"):
        convert(tmp_path / "t5", tmp_path / "ours")


def test_the_folder_of_a_training_with_transformers(tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copytree(GOLDENS / "mono/transformers", tmp_path / "run/checkpoint-500")
    with pytest.raises(UserError, match="its folder checkpoint-500 does: convert that one"):
        convert(tmp_path / "run", tmp_path / "ours")


def test_an_adapter_of_peft(tmp_path):
    key = "base_model.model.decoder.model.decoder.layers.0.self_attn.q_proj.lora_A.weight"
    file = tmp_path / "adapter_model.safetensors"
    safetensors.numpy.save_file({key: np.zeros((2, 24), np.float32)}, file)
    for path in (tmp_path, file):
        with pytest.raises(UserError, match="an adapter of PEFT: merge it into its model"):
            convert(path, tmp_path / "ours")


def test_a_config_with_a_byte_order_mark(tmp_path):
    write_t5(tmp_path / "t5")
    file = tmp_path / "t5/config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    found = convert(tmp_path / "t5", tmp_path / "ours")
    assert found == {"t5": DEBUG.t5}
