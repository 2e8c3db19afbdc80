"""A model folder survives the round trip, and a damaged one says so."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from musicgen_jax.config import EncodecConfig, LMConfig, MusicGenConfig, T5Config
from musicgen_jax.errors import UserError
from musicgen_jax.storage import checkpoint, int8_storage

CONFIG = MusicGenConfig(
    T5Config(vocab_size=11, d_model=6, num_layers=1),
    LMConfig(dim=8, num_heads=2, num_layers=2, card=7, text_dim=6),
    EncodecConfig(n_filters=2, ratios=(2,), bins=7),
    name="tiny",
)


def _params(dtype=np.float32):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(0, 0.3, shape).astype(dtype)

    return {
        "t5": {"shared": {"embedding": draw(11, 6)}, "final_norm": {"scale": draw(6)}},
        "lm": {
            "layers": {i: {"linear1": {"weight": draw(16, 8)}} for i in range(12)},
            "out_norm": {"scale": draw(8), "bias": draw(8)},
        },
        "encodec": {
            "encoder": {"layers": {"0": {"weight": draw(3, 1, 4), "bias": draw(4)}}},
            "quantizer": {"embed": draw(4, 7, 8)},
        },
    }


def _save(path, params=None, **options):
    options = {"tokenizer": b"pieces", "license": "free", "source": {"from": "here"}} | options
    checkpoint.save_model(path, CONFIG, params or _params(), **options)


def _abstract(tree, dtype=jnp.float32, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding), tree)


def _load_all(path, params=None):
    return {
        name: checkpoint.load_params(path, name, _abstract(tree))
        for name, tree in (params or _params()).items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    _save(path)
    return path


def test_round_trip(folder):
    params = _params()
    loaded = _load_all(folder)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)  # integer keys stay integers
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    assert checkpoint.load_config(folder) == CONFIG
    assert checkpoint.load_info(folder).source == {"from": "here"}
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"
    assert (folder / "LICENSE").read_text() == "free"


@pytest.mark.parametrize("stored", [np.float16, np.float32, jnp.bfloat16])
@pytest.mark.parametrize("wanted", [jnp.float16, jnp.float32, jnp.bfloat16])
def test_casts_at_load(tmp_path, stored, wanted):
    params = _params(stored)
    _save(tmp_path / "m", params)
    loaded = checkpoint.load_params(tmp_path / "m", "lm", _abstract(params["lm"], wanted))
    expected = jax.tree.map(lambda x: x.astype(wanted), params["lm"])
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(wanted)}


@pytest.mark.parametrize("storage", checkpoint.STORAGES)
def test_restores_into_sharding(tmp_path, storage):
    _save(tmp_path / "m", storage=storage)
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    sharding = NamedSharding(mesh, PartitionSpec("model"))
    abstract = _abstract(_params()["lm"], jnp.bfloat16, sharding)
    loaded = checkpoint.load_params(tmp_path / "m", "lm", abstract)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(loaded))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.bfloat16)}


def test_int8_is_close_and_keeps_vectors(tmp_path):
    params = _params()
    params["lm"]["layers"][0]["linear1"]["weight"][3] = 0  # a silent channel stays silent
    _save(tmp_path / "m", params, storage="int8")
    loaded = _load_all(tmp_path / "m", params)

    def check(path, actual, expected):
        if expected.ndim < 2:
            np.testing.assert_array_equal(actual, expected)
            return
        conv = path[0].key == "encodec" and path[-1].key == "weight"
        largest = np.abs(expected).max(axis=(0, 1) if conv else -1, keepdims=True)
        assert np.all(np.abs(actual - expected) <= largest / 253)

    jax.tree_util.tree_map_with_path(check, loaded, params)
    assert checkpoint.load_info(tmp_path / "m").components["lm"]["storage"] == "int8"


def test_int8_is_compact(tmp_path):
    """Six million parameters take about six megabytes in a few files."""
    rng = np.random.default_rng(1)
    big = {str(i): {"weight": rng.normal(size=(1024, 256)).astype(np.float32)} for i in range(23)}
    _save(tmp_path / "m", _params() | {"lm": big}, storage="int8")
    files = [f for f in (tmp_path / "m").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 6.35e6
    assert len(files) < 60


def test_existing_folder_is_kept_unless_overwritten(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    with pytest.raises(UserError, match="exists already"):
        _save(tmp_path / "m")
    _save(tmp_path / "m", source={"from": "there"}, overwrite=True)
    assert checkpoint.load_info(tmp_path / "m").source == {"from": "there"}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(UserError, match="not a model"):
        _save(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letter").exists()


def test_an_overwrite_that_fails_keeps_the_old_model(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "m")
    replace = os.replace

    def fail_at_the_end(source, target):
        if str(source).endswith(".partial"):
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_end)
    with pytest.raises(OSError, match="no space"):
        _save(tmp_path / "m", source={"from": "there"}, overwrite=True)
    assert checkpoint.load_info(tmp_path / "m").source == {"from": "here"}


def test_interrupted_write_leaves_nothing(tmp_path):
    def write_half():
        with checkpoint.writing_model(tmp_path / "m") as writer:
            writer.write_component("lm", _params()["lm"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_killed_write_does_not_load_and_does_not_block(tmp_path):
    aside = tmp_path / ".m.partial"
    (aside / "lm").mkdir(parents=True)
    with pytest.raises(UserError, match="no model folder"):
        checkpoint.load_config(tmp_path / "m")
    with pytest.raises(UserError, match="incomplete or interrupted"):
        checkpoint.load_config(aside)
    _save(tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_part_of_a_model(tmp_path):
    with checkpoint.writing_model(tmp_path / "codec") as writer:
        writer.write_component("encodec", _params()["encodec"])
        configs = {"encodec": CONFIG.encodec}
        writer.finish(configs, tokenizer=None, license="free", source={})
    assert checkpoint.load_info(tmp_path / "codec").parts == configs
    with pytest.raises(UserError, match="holds only encodec"):
        checkpoint.load_config(tmp_path / "codec")
    with pytest.raises(UserError, match="no component 'lm'"):
        checkpoint.load_params(tmp_path / "codec", "lm", {})


def _edit(change):
    def edit(path):
        document = json.loads((path / "config.json").read_text())
        change(document)
        (path / "config.json").write_text(json.dumps(document))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: shutil.rmtree(p), "no model folder"),
        (lambda p: (p / "config.json").unlink(), "incomplete or interrupted"),
        (lambda p: (p / "config.json").write_text("{"), "not readable JSON"),
        (lambda p: (p / "config.json").write_bytes(b"\xff\xfe"), "not readable JSON"),
        (lambda p: (p / "config.json").write_text("[]"), "no format_version"),
        (_edit(lambda d: d.update(format_version=99)), "format version 99"),
        (_edit(lambda d: d.update(colour="red")), "unknown field colour"),
        (_edit(lambda d: d.pop("source")), "source is missing"),
        (_edit(lambda d: d.update(source=1)), "source must be an object"),
        (_edit(lambda d: d.update(components={"lm": 3})), "components.lm"),
        (_edit(lambda d: d["components"]["lm"].update(storage="int2")), "storage"),
        (_edit(lambda d: d["components"].pop("lm")), "different parts"),
        (_edit(lambda d: d["architecture"]["lm"].update(colour=1)), "unknown field colour"),
        (_edit(lambda d: d["architecture"]["lm"].update(dim="8")), "lm.dim must be of type int"),
        (_edit(lambda d: d["architecture"]["lm"].update(delays=[1])), "delays must be 4"),
    ],
)
def test_broken_config(folder, tmp_path, damage, message):
    path = tmp_path / "m"
    shutil.copytree(folder, path)
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_every_lost_or_cut_file_is_found(folder, tmp_path, damage):
    names = [f.relative_to(folder) for f in (folder / "lm").rglob("*") if f.stat().st_size]
    names = [n for n in names if (folder / n).is_file()]
    assert len(names) > 5
    for i, name in enumerate(names):
        path = tmp_path / str(i)
        shutil.copytree(folder, path)
        if damage == "delete":
            (path / name).unlink()
        else:
            (path / name).write_bytes((path / name).read_bytes()[:-1])
        with pytest.raises(UserError, match="damaged or incomplete"):
            checkpoint.load_params(path, "lm", _abstract(_params()["lm"]))
    shutil.rmtree(tmp_path / "0" / "lm")
    with pytest.raises(UserError, match="damaged or incomplete"):
        checkpoint.load_params(tmp_path / "0", "lm", _abstract(_params()["lm"]))


@pytest.mark.filterwarnings("ignore")  # what Orbax leaves behind when it fails is not ours
@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA"])
def test_garbage_of_the_right_size_is_a_user_error(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "m")
    manifest = tmp_path / "m" / "lm" / "state" / name
    manifest.write_bytes(b"\0" * manifest.stat().st_size)
    with pytest.raises(UserError, match="damaged or incomplete"):
        checkpoint.load_params(tmp_path / "m", "lm", _abstract(_params()["lm"]))


@pytest.mark.parametrize("storage", checkpoint.STORAGES)
def test_wrong_leaves_are_named(tmp_path, storage):
    _save(tmp_path / "m", storage=storage)
    abstract = _abstract(_params()["lm"])
    del abstract["layers"][11]
    abstract["more"] = {"scale": jax.ShapeDtypeStruct((2,), jnp.float32)}
    abstract["layers"][3]["linear1"]["weight"] = jax.ShapeDtypeStruct((16, 9), jnp.float32)
    with pytest.raises(UserError) as caught:
        checkpoint.load_params(tmp_path / "m", "lm", abstract)
    message = str(caught.value)
    assert "missing more/scale" in message
    assert "unexpected layers/11/linear1/weight" in message
    assert "layers/3/linear1/weight is (16, 8), not (16, 9)" in message
    assert "\n" not in message


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_int8_error_is_bounded_per_channel(rows, columns, size, seed):
    value = np.random.default_rng(seed).normal(0, size, (rows, columns)).astype(np.float32)
    stored = int8_storage.quantize("lm", ("weight",), value)
    back = stored["int8"].astype(np.float32) * stored["scale"]
    assert np.all(np.abs(back - value) <= np.abs(value).max(-1, keepdims=True) / 253)
