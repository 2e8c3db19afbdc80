"""A model folder survives the round trip, and a damaged one says so."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from musicgen_jax import files
from musicgen_jax.config import EncodecConfig, LMConfig, MusicGenConfig, T5Config
from musicgen_jax.errors import UserError
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.storage import arrays, checkpoint, int8_storage
from musicgen_jax.storage.hub import find_model
from tests.helpers.faults import raising

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
    for config in (None, "{}", '{"model_type": "musicgen"}', "[1]", "{"):  # of transformers, say
        if config is not None:
            (tmp_path / "home" / "config.json").write_text(config)
        with pytest.raises(UserError, match="did not write it"):
            _save(tmp_path / "home", overwrite=True)
        assert (tmp_path / "home" / "letter").exists()


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini"])
def test_files_of_an_operating_system_in_a_model_are_not_damage(folder, tmp_path, name):
    model = shutil.copytree(folder, tmp_path / "m")
    (model / "lm" / name).write_text("x")
    loaded = checkpoint.load_params(model, "lm", _abstract(_params()["lm"]))
    jax.tree.map(np.testing.assert_array_equal, loaded, _params()["lm"])


@pytest.mark.parametrize(
    "fault", [MemoryError(), ValueError("[OS error 5: EIO Input/output error]")]
)
def test_a_model_that_cannot_be_read_now_is_not_called_damaged(folder, monkeypatch, fault):
    monkeypatch.setattr(checkpoint.arrays, "load", raising(fault))
    with pytest.raises(UserError, match=r"cannot read .*(out of memory|Input/output error)"):
        checkpoint.load_params(folder, "lm", _abstract(_params()["lm"]))


def test_interrupted_write_leaves_nothing(tmp_path):
    def write_half():
        with checkpoint.writing_model(tmp_path / "m") as writer:
            writer.write_component("lm", _params()["lm"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [".m.partial", files.temporary_name(Path("m")).name[:9] + "01234567.part"]
)
def test_killed_write_does_not_load_and_does_not_block(tmp_path, name):
    leftover = tmp_path / name
    (leftover / "lm").mkdir(parents=True)
    with pytest.raises(UserError, match="no model folder"):
        checkpoint.load_config(tmp_path / "m")
    with pytest.raises(UserError, match="incomplete or interrupted"):
        checkpoint.load_config(leftover)
    os.utime(leftover, (0, 0))
    _save(tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


# Files in this process cannot grow beyond 100 kB, as on a full disk.
SMALL_DISK = """
import resource, sys
import numpy as np
from musicgen_jax import testing
from musicgen_jax.storage import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with checkpoint.writing_model(sys.argv[1], overwrite=True) as writer:
        weight = np.random.default_rng(0).normal(size=(1000, 1000))
        writer.write_component("lm", {"small": weight[:1], "large": weight})
except checkpoint.UserError as error:
    print(f"one line: {error}")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits a process")
def test_a_disk_that_is_full_in_the_middle_is_one_line(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    command = [sys.executable, "-c", SMALL_DISK, str(tmp_path / "m")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"one line: cannot write {tmp_path / 'm'}: ")
    assert len(run.stdout.splitlines()) == 1
    assert "ERROR:absl" not in run.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert checkpoint.load_config(tmp_path / "m") == CONFIG, "the older model is still there"


def test_a_disk_that_is_too_small_is_told_before_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 500))
    with pytest.raises(UserError, match=r"/m: 0 MB more are needed, but only 0 MB are free"):
        _save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["file/m", "/proc/m"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, target):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write .*{target}: "):
        _save(tmp_path / target)


def test_a_folder_that_lacks_what_its_config_counts_is_never_put_in_place(tmp_path):
    def write(damage):
        with checkpoint.writing_model(tmp_path / "m") as writer:
            writer.write_component("encodec", _params()["encodec"])
            configs = {"encodec": CONFIG.encodec}
            writer.finish(configs, tokenizer=None, license="free", source={})
            (folder,) = tmp_path.iterdir()
            damage(folder)

    with pytest.raises(UserError, match="encodec changed while it was written"):
        write(lambda folder: next((folder / "encodec").rglob("manifest.ocdbt")).unlink())
    with pytest.raises(ValueError, match="finish"):
        write(lambda folder: (folder / "config.json").unlink())
    assert list(tmp_path.iterdir()) == []


def _with_bad_weight(bad, dtype=np.float32):
    params = _params(dtype)
    params["lm"]["layers"][7]["linear1"]["weight"][3, 2] = bad
    return params


@pytest.mark.parametrize("storage", checkpoint.STORAGES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, jnp.bfloat16])
def test_weights_that_are_not_finite_are_not_written(tmp_path, bad, dtype, storage):
    with pytest.raises(UserError, match="lm: layers/7/linear1/weight holds weights that are NaN"):
        _save(tmp_path / "m", _with_bad_weight(bad, dtype), storage=storage)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_told_when_they_are_read(tmp_path, monkeypatch):
    """Earlier releases wrote them without a word."""
    monkeypatch.setattr(arrays, "check_finite", lambda leaves, what: None)
    for storage in checkpoint.STORAGES:
        params = _params()
        params["lm"]["out_norm"]["bias"][3] = np.nan
        _save(tmp_path / storage, params, storage=storage)
    monkeypatch.undo()
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    for sharding in (None, NamedSharding(mesh, PartitionSpec())):
        for storage in checkpoint.STORAGES:
            abstract = _abstract(params["lm"], sharding=sharding)
            with pytest.raises(UserError, match="damaged: out_norm/bias holds weights"):
                checkpoint.load_params(tmp_path / storage, "lm", abstract)


def test_large_weights_are_finite(tmp_path):
    params = _with_bad_weight(np.finfo(np.float32).max)
    params["lm"]["layers"][7]["linear1"]["weight"][:] = np.finfo(np.float32).max
    _save(tmp_path / "m", params)
    _load_all(tmp_path / "m", params)


@pytest.mark.parametrize("storage", checkpoint.STORAGES)
def test_nothing_that_is_written_holds_a_path_of_this_machine(tmp_path, storage):
    _save(tmp_path / "m", storage=storage)
    with checkpoint.writing_model(tmp_path / "copy") as writer:
        note = tmp_path / "m" / "encodec" / "commit_success.txt"
        note.write_text(note.read_text() + f" to {note.parent}")  # as earlier releases wrote it
        writer.copy_component(tmp_path / "m", "encodec")
        configs = {"encodec": CONFIG.encodec}
        writer.finish(configs, tokenizer=None, license="free", source={})
    note.write_text("Checkpoint commit was successful")
    assert files_that_name_a_path_of(tmp_path) == []
    checkpoint.load_params(tmp_path / "copy", "encodec", _abstract(_params()["encodec"]))


def files_that_name_a_path_of(root):
    contents = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert contents
    return [file for file, content in contents.items() if str(root).encode() in content]


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
        (lambda p: (p / "config.json").write_text("[]"), "must hold an object"),
        (lambda p: (p / "config.json").write_text("{}"), "no format_version"),
        (_edit(lambda d: d.update(format_version=99)), "format version 99"),
        (_edit(lambda d: d.update(colour="red")), "unknown field colour"),
        (_edit(lambda d: d.pop("source")), "source is missing"),
        (_edit(lambda d: d.update(source=1)), "source must be an object"),
        (_edit(lambda d: d.update(components={"lm": 3})), "components.lm"),
        (_edit(lambda d: d["components"]["lm"].update(storage="int2")), "storage"),
        (_edit(lambda d: d["components"].pop("lm")), "different parts"),
        (_edit(lambda d: d["architecture"]["lm"].update(colour=1)), "unknown field .*lm.colour"),
        (_edit(lambda d: d["architecture"]["lm"].update(dim="8")), "lm.dim must be a whole number"),
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


def test_a_component_can_be_that_of_nano(tmp_path):
    """It is counted, read and copied as if it were there."""
    nano = find_model("nano")
    config = checkpoint.load_info(nano).parts["t5"]
    path = tmp_path / "shared"
    with checkpoint.writing_model(path) as writer:
        writer.share_component("t5")
        tokenizer = nano / checkpoint.TOKENIZER
        writer.finish({"t5": config}, tokenizer=tokenizer, license="x", source={})
    assert not (path / "t5").exists()
    state = nnx.to_pure_dict(nnx.state(module_shapes(T5Encoder, config), nnx.Param))
    ours, theirs = (checkpoint.load_params(folder, "t5", state) for folder in (path, nano))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    with checkpoint.writing_model(tmp_path / "copy") as writer:
        writer.copy_component(path, "t5")
        writer.finish({"t5": config}, tokenizer=tokenizer, license="x", source={})
    assert (tmp_path / "copy" / "t5").is_dir()
    document = json.loads((path / "config.json").read_text())
    document["components"]["t5"]["of"] = "../../secret"
    (path / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"components\.t5\.of must be 'nano' or absent"):
        checkpoint.load_info(path)
    document["components"]["t5"] |= {"of": "nano", "bytes": 1}
    (path / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="damaged or incomplete"):
        checkpoint.load_params(path, "t5", state)
