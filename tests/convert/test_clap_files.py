"""Conversion of CLAP from LAION's file: what it takes, what it writes, what it refuses."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from musicgen_jax.commands import cli
from musicgen_jax.convert import clap as table
from musicgen_jax.convert import convert
from musicgen_jax.convert.inverse import invert_table
from musicgen_jax.convert.pipeline import abstract_params
from musicgen_jax.convert.torch_writer import write_torch
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.clap import Clap
from musicgen_jax.storage import checkpoint
from tests.helpers import clap_files


@pytest.fixture(scope="module")
def state():
    return clap_files.laion_state(text_dim=64)


@pytest.fixture
def source(state, tmp_path):
    clap_files.write_laion(tmp_path / "clap.pt", state)
    clap_files.write_tokenizer(tmp_path / "words")
    return tmp_path / "clap.pt"


def run(*words):
    return cli.main([str(word) for word in words])


def test_one_line_converts_and_the_table_turns_back(source, state, tmp_path, capsys):
    assert run("convert", source, tmp_path / "ours", "--tokenizer", tmp_path / "words") == 0
    config = checkpoint.load_info(tmp_path / "ours").parts["clap"]
    params = checkpoint.load_params(tmp_path / "ours", "clap", abstract_params("clap", config))
    back = invert_table(table.TABLES[table.LAION], params, "clap")
    unused = {key for key in state if table.TABLES[table.LAION].ignores(key)}
    assert back.keys() == state.keys() - unused
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, state[key])
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "words" / name).read_bytes()
    assert "CC0" in (tmp_path / "ours/LICENSE").read_text()


def test_the_tokenizer_may_lie_near_the_file_in_one_or_two_files(source, tmp_path):
    words, near = tmp_path / "words", tmp_path / "roberta-base"
    lines = (words / "merges.txt").read_text().splitlines()[1:]
    for merges in (lines, [line.split(" ") for line in lines]):  # of older and newer files
        vocabulary = json.loads((words / "vocab.json").read_text())
        near.mkdir()
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
        (near / "tokenizer.json").write_text(json.dumps({"model": model}))
        convert(source, tmp_path / "ours", overwrite=True)
        shutil.rmtree(near)
        texts = ["a calm piano", "90s rock, naïve & <mask> Ω"]
        ours = Clap.from_pretrained(tmp_path / "ours").tokenizer(texts)
        convert(source, tmp_path / "two", tokenizer_from=str(words), overwrite=True)
        np.testing.assert_array_equal(ours, Clap.from_pretrained(tmp_path / "two").tokenizer(texts))


def test_without_a_tokenizer_one_line_says_where_it_is(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("convert", source, tmp_path / "ours") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--tokenizer FOLDER" in message
    assert "FacebookAI/roberta-base" in message
    assert not (tmp_path / "ours").exists()


def test_other_tokenizers_are_refused(source, tmp_path, capsys):
    words = tmp_path / "words"
    vocabulary = json.loads((words / "vocab.json").read_text())
    wrong = {
        "must have the id 1": vocabulary | {"<pad>": 3, "<unk>": 1},
        "without a gap": vocabulary | {"extra": len(vocabulary) + 5},
        "pieces and ids": {"a": "b"},
        "the weights of CLAP know 330": vocabulary
        | {f"x{i}": len(vocabulary) + i for i in range(20)},
    }
    for message, content in wrong.items():
        (words / "vocab.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / "ours", tokenizer_from=str(words))
    (words / "vocab.json").write_text(json.dumps(vocabulary))
    for merges in ("a b c\n", "qqq zzz\n", "\udcff".encode("utf-8", "surrogatepass")):
        (words / "merges.txt").write_bytes(merges if isinstance(merges, bytes) else merges.encode())
        with pytest.raises(UserError, match=r"merges\.txt"):
            convert(source, tmp_path / "ours", tokenizer_from=str(words))
    (words / "merges.txt").unlink()
    with pytest.raises(UserError, match="is not a folder with vocab"):
        convert(source, tmp_path / "ours", tokenizer_from=str(words))


def test_a_collapsed_text_tower_is_refused(state, tmp_path):
    clap_files.write_tokenizer(tmp_path)
    collapsed = state | {
        "text_projection.2.bias": np.full_like(state["text_projection.2.bias"], 99)
    }
    clap_files.write_laion(tmp_path / "clap.pt", collapsed)
    with pytest.raises(UserError, match=r"collapsed text tower.* cosine of 0\.99"):
        convert(tmp_path / "clap.pt", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_another_network_or_half_a_file_is_refused(source, state, tmp_path):
    clap_files.write_tokenizer(tmp_path)
    fused = "audio_branch.patch_embed.fusion_model.local_att.0.weight"
    mel = "audio_branch.logmel_extractor.melW"
    block = "audio_branch.layers.2.blocks.1.mlp.fc1.weight"
    table_key = "audio_branch.layers.0.blocks.0.attn.relative_position_bias_table"
    changes = {
        "with fusion": {fused: np.zeros((2, 2), np.float32)},
        "uses a different spectrum": {mel: state[mel] * 1.01},
        "1 unexpected": {"text_branch.more": np.zeros(3, np.float32)},
        "1 mis-shaped": {block: state[block][:-1]},
        "windows other than 8 x 8": {table_key: np.zeros((49, 1), np.float32)},
    }
    for message, change in changes.items():
        clap_files.write_laion(tmp_path / "changed.pt", state | change)
        with pytest.raises(UserError, match=message):
            convert(tmp_path / "changed.pt", tmp_path / "ours")
    missing = dict(state)
    del missing["text_branch.pooler.dense.bias"]
    clap_files.write_laion(tmp_path / "missing.pt", missing)
    with pytest.raises(UserError, match="1 missing"):
        convert(tmp_path / "missing.pt", tmp_path / "ours")
    data = source.read_bytes()
    (tmp_path / "half.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        convert(tmp_path / "half.pt", tmp_path / "ours")


def test_a_file_that_fadtk_patched(state, tmp_path):
    clap_files.write_tokenizer(tmp_path)
    write_torch(
        tmp_path / "clap.pt", {"state_dict": state | {"text_branch.embeddings.position_ids": 0}}
    )
    convert(tmp_path / "clap.pt", tmp_path / "ours")
    assert Clap.from_pretrained(tmp_path / "ours").name == "clap of clap.pt"


def test_only_clap_has_a_use_for_the_tokenizer(tmp_path):
    keys = ("embeddings.4.weight", "features.13.weight")  # VGGish's
    write_torch(tmp_path / "x.pt", {key: np.zeros((2, 2), np.float32) for key in keys})
    with pytest.raises(UserError, match="leave out --tokenizer"):
        convert(tmp_path / "x.pt", tmp_path / "ours", tokenizer_from=str(tmp_path))


def test_what_is_known_is_listed(tmp_path):
    write_torch(tmp_path / "x.pt", {"mine": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="MusicGen, EnCodec, HTDemucs, VGGish, PaSST or CLAP"):
        convert(tmp_path / "x.pt", tmp_path / "ours")


def test_a_folder_without_tokenizer_still_hears(source, tmp_path):
    convert(source, tmp_path / "ours", tokenizer_from=str(tmp_path / "words"))
    (tmp_path / "ours/merges.txt").unlink()
    clap = Clap.from_pretrained(tmp_path / "ours")
    assert clap.embed(np.zeros((1, 48_000), np.float32), 48_000).shape[0] == 1
    with pytest.raises(UserError, match=r"copy vocab\.json and merges\.txt"):
        clap.embed_text(["a calm piano"])
