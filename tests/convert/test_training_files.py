"""Files of training runs: read as data, converted as audiocraft exports them, never run."""

import pickle
import re
import shutil
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from musicgen_jax.convert import convert
from musicgen_jax.convert.pickled import Inert, Name
from musicgen_jax.convert.pipeline import abstract_params
from musicgen_jax.convert.settings import TRAINING_NAMES, read_config, read_xp_cfg
from musicgen_jax.convert.source import open_source
from musicgen_jax.convert.torch_writer import write_torch
from musicgen_jax.convert.torch_zip import read_torch
from musicgen_jax.errors import UserError
from musicgen_jax.storage import checkpoint
from musicgen_jax.testing import DEBUG
from tests.helpers import paths
from tests.helpers.official_files import audiocraft_codec, audiocraft_lm, write_audiocraft, write_t5

GOLDENS = paths.GOLDENS / "training"  # by torch and omegaconf themselves


def node(value):
    """A value as omegaconf pickles it."""
    if isinstance(value, dict):
        content = {key: node(item) for key, item in value.items()}
        return Inert("omegaconf.dictconfig.DictConfig", (), {"_parent": None, "_content": content})
    if isinstance(value, list):
        content = [node(item) for item in value]
        return Inert("omegaconf.listconfig.ListConfig", (), {"_content": content})
    metadata = {"ref_type": Name("typing.Any"), "object_type": Name("builtins.dict")}
    metadata = Inert("omegaconf.base.Metadata", (), metadata)
    return Inert("omegaconf.nodes.AnyNode", (), {"_metadata": metadata, "_val": value})


# --- Conversion --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A converted run: its LM, its codec, and T5 from elsewhere."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(GOLDENS / "lm", folder / "lm")
    write_t5(folder / "t5-base")
    convert(folder / "lm", folder / "ours", encodec_from=str(GOLDENS / "codec" / "checkpoint.th"))
    return folder / "ours"


def same_weights(ours, theirs, component, config):
    abstract = abstract_params(component, config)
    loaded = (checkpoint.load_params(folder, component, abstract) for folder in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, *loaded)


def test_a_run_converts_to_what_its_export_converts_to(run_folder, tmp_path):
    official = write_audiocraft(tmp_path / "exported")
    convert(official, tmp_path / "theirs")
    config = checkpoint.load_config(run_folder)
    assert (config.lm, config.encodec) == (DEBUG.lm, DEBUG.encodec)
    assert config.max_duration == 12.0  # by the run's settings
    same_weights(run_folder, tmp_path / "theirs", "lm", config.lm)
    same_weights(run_folder, tmp_path / "theirs", "encodec", config.encodec)


def test_settings_of_a_real_run():
    settings = open_source(str(GOLDENS / "lm")).parts["lm"].settings
    assert settings["transformer_lm.num_heads"] == str(DEBUG.lm.num_heads)
    assert settings["codebooks_pattern.delay.delays"] == ["0", "1", "2", "3"]
    assert settings["schedule.extra"] == settings["sample_rate"]  # a reference
    assert settings["continue_from"] == "null"
    assert settings["transformer_lm.norm_first"] == "true"


def test_the_rest_of_the_file_is_not_read(tmp_path):
    """Damage in an optimizer's state, which can be twice as large as the model, harms nothing."""
    data = bytearray((GOLDENS / "codec" / "checkpoint.th").read_bytes())
    path = tmp_path / "checkpoint.th"
    with zipfile.ZipFile(GOLDENS / "codec" / "checkpoint.th") as archive:
        sizes = [info for info in archive.infolist() if re.search(r"/data/\d+$", info.filename)]
    last = max(sizes, key=lambda info: int(info.filename.rsplit("/")[-1]))
    place = (
        last.header_offset
        + 30
        + int.from_bytes(data[last.header_offset + 26 : last.header_offset + 28], "little")
    )
    place += int.from_bytes(data[last.header_offset + 28 : last.header_offset + 30], "little")
    data[place] ^= 255
    path.write_bytes(data)
    value = read_torch(path, inert=TRAINING_NAMES)
    state = value["optimizer"]["state"][0]
    with pytest.raises(UserError, match="CRC"):
        [tensor.read() for tensor in state.values()]
    assert convert(path, tmp_path / "ours") == {"encodec": DEBUG.encodec}


def run(**changes):
    state = audiocraft_codec()
    cfg = node({"sample_rate": 4000, "seanet": {"pad_mode": "reflect"}})
    return {"best_state": {"model": state}, "xp.cfg": cfg, "optimizer": {}} | changes


def first_weight(path):
    tensors = open_source(str(path)).parts["encodec"].tensors
    return tensors["encoder.model.0.conv.conv.bias"].read()


@pytest.mark.parametrize(
    ("states", "chosen"),
    [
        ({"best_state": 1, "fsdp_best_state": {}, "ema": 3, "model": 4}, 1),
        ({"best_state": {}, "fsdp_best_state": 2, "ema": 3, "model": 4}, 2),
        ({"best_state": 1, "fsdp_best_state": 2}, 2),
        ({"ema": 3, "model": 4}, 3),  # from before there was a best state
    ],
)
def test_the_state_that_audiocraft_would_export(tmp_path, states, chosen):
    value = run(**{"best_state": None})
    for name, number in states.items():
        state = number
        if isinstance(number, int):
            bias = {"encoder.model.0.conv.conv.bias": np.full(4, number, np.float32)}
            state = audiocraft_codec() | bias
            wrapped = {"model": state}
            state = state if name == "model" else {"state": wrapped} if name == "ema" else wrapped
        value[name] = state
    write_torch(tmp_path / "checkpoint.th", value)
    assert (first_weight(tmp_path / "checkpoint.th") == chosen).all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("checkpoint.th", {"best_state": {}}, "does not hold a dict of tensors as best_state"),
        ("checkpoint.th", {"best_state": {"model": {}}}, "does not hold a dict of tensors"),
        ("checkpoint.th", {"best_state": {"model": node({})}}, "does not hold a dict of tensors"),
        ("checkpoint.th", {"best_state": {"model": {"a": 3}}}, "more than tensors"),
        ("checkpoint.th.1", {}, "one process's part"),
    ],
)
def test_states_that_are_none(tmp_path, name, changes, message):
    write_torch(tmp_path / name, run(**changes))
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path / name, tmp_path / "ours")
    assert "\n" not in str(caught.value)


def test_codecs_that_a_run_names(tmp_path):
    """A codec that was trained too cannot be guessed: the official one would play noise."""
    cfg = node({"compression_model_checkpoint": "//sig/0a1b2c3d"})
    folder = tmp_path / "run"
    folder.mkdir()
    value = run(best_state={"model": audiocraft_lm()}, **{"xp.cfg": cfg})
    write_torch(folder / "checkpoint.th", value)
    write_t5(folder / "t5-base")
    with pytest.raises(UserError, match=r"needs //sig/0a1b2c3d.*--encodec PATH"):
        convert(folder, tmp_path / "ours")


# --- Settings ----------------------------------------------------------------------------------

YAML = """\
a: 3
b:
  c: true
  d: null
  e: 1.0e-05
  f: text
  g:
  - 1
  - x
  h: []
  i: {}
j: ${b.f}
"""


def test_pickled_settings_are_those_of_the_yaml(tmp_path):
    values = {"c": True, "d": None, "e": 1e-5, "f": "text", "g": [1, "x"], "h": [], "i": {}}
    config = node({"a": 3, "b": values, "j": "${b.f}"})
    write_torch(tmp_path / "x.th", {"xp.cfg": config})
    read = read_torch(tmp_path / "x.th", inert=TRAINING_NAMES)["xp.cfg"]
    assert isinstance(read, Inert)
    assert read_config(read) == read_xp_cfg(YAML)
    assert read_config({"a": 3, "b": values, "j": "${b.f}"}) == read_xp_cfg(YAML)


def test_settings_that_never_end():
    """Inside themselves, or doubled thirty times: a walk must count."""
    cycle = node({})
    cycle.state["_content"]["again"] = cycle
    double = {}
    for _ in range(29):
        double = {"a": double, "b": double}
    long = node({"x" * 600: {"y" * 600: 1}})
    for value in (cycle, double, long, [[1] * 10**6]):
        start = time.monotonic()
        try:
            read_config(value)
        except ValueError as error:
            message = str(error)
            assert "too large or nested too deep" in message
        else:
            assert isinstance(value, list)  # lists of lists are left out, as from YAML
        assert time.monotonic() - start < 20


@pytest.mark.parametrize("config", [3, None, [], Inert("torch.Size", ()), Name("typing.Any")])
def test_settings_that_are_none(config):
    assert len(read_config(config)) <= 1


# --- Attacks -----------------------------------------------------------------------------------


def write_zip(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
    return path


def text(string):
    return b"X" + len(string).to_bytes(4, "little") + string.encode()


GLOBALS = {
    "os.system": b"cos\nsystem\n" + text("touch ATTACKED") + b"\x85R.",
    "posix.system": b"cposix\nsystem\n" + text("touch ATTACKED") + b"\x85R.",
    "builtins.eval": b"cbuiltins\neval\n" + text("1") + b"\x85R.",
    "builtins.exec": b"cbuiltins\nexec\n" + text("1") + b"\x85R.",
    "builtins.getattr": b"cbuiltins\ngetattr\ncos\nO\n" + text("system") + b"\x86R.",
    "builtins.__import__": b"cbuiltins\n__import__\n" + text("os") + b"\x85R.",
    "__builtin__.apply": b"c__builtin__\napply\n).",
    "copyreg._reconstructor": b"ccopyreg\n_reconstructor\n(cbuiltins\nint\ncbuiltins\nint\nNtR.",
    "copy_reg.add_extension": b"ccopy_reg\nadd_extension\n(X\1\0\0\0aX\1\0\0\0bK\1tR.",
    "functools.partial": b"cfunctools\npartial\n).",
    "operator.attrgetter": b"coperator\nattrgetter\n" + text("system") + b"\x85R.",
    "importlib.import_module": b"cimportlib\nimport_module\n).",
    "torch.load": b"ctorch\nload\n).",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n).",
    "omegaconf.omegaconf.OmegaConf": b"comegaconf.omegaconf\nOmegaConf\n).",
    "omegaconf.dictconfig.DictConfig.__init__.__globals__": (
        b"\x8c\x14omegaconf.dictconfig\x8c\x1fDictConfig.__init__.__globals__\x93."
    ),
    "typing.get_type_hints": b"ctyping\nget_type_hints\n).",
    "builtins.list.append": b"\x8c\x08builtins\x8c\x0blist.append\x93.",
}


@pytest.mark.parametrize("name", GLOBALS)
def test_names_off_the_list_are_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = write_zip(tmp_path / "x.th", b"\x80\x04" + GLOBALS[name])
    with pytest.raises(UserError, match="refused: it names") as caught:
        open_source(str(path))
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ATTACKED").exists()


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("INST", b"(X\1\0\0\0aibuiltins\nlist\n."),
        ("OBJ", b"(cbuiltins\nlist\no."),
        ("EXT1", b"\x82\x01."),
        ("PERSID", b"Pstorage\n."),
        ("NEWOBJ_EX", b"cbuiltins\nlist\n)}\x92."),
        ("NEXT_BUFFER", b"\x97."),
        ("BYTEARRAY8", b"\x96\1\0\0\0\0\0\0\0a."),
        ("LONG4", b"\x8b\xff\xff\x00\x00" + b"\1" * 0xFFFF + b"."),
        ("EMPTY_SET", b"\x8f(\x90."),
    ],
)
def test_instructions_off_the_list_are_refused(tmp_path, name, program):
    path = write_zip(tmp_path / "x.th", b"\x80\x05" + program)
    with pytest.raises(UserError, match=f"pickle instruction {name} is not data"):
        read_torch(path, inert=TRAINING_NAMES)


def test_listed_names_are_neither_imported_nor_called(tmp_path):
    """Types on the list, called, made, given a state: what comes back is a record."""
    for made in (b"R", b"\x81"):
        program = b"\x80\x02cbuiltins\nint\n" + text("7" * 5000) + b"\x85" + made + b"}b."
        value = read_torch(write_zip(tmp_path / "x.th", program), inert=TRAINING_NAMES)
        assert isinstance(value, Inert)
        assert (value.name, value.args, value.state) == ("builtins.int", ("7" * 5000,), {})
    path = write_zip(tmp_path / "x.th", b"\x80\x02cnot.there\nThing\n)\x81.")
    assert read_torch(path, inert={"not.there.Thing"}).name == "not.there.Thing"
    path = write_zip(tmp_path / "x.th", pickle.dumps(Path("/etc"), 2))
    value = read_torch(path, inert={"pathlib.PosixPath", "pathlib._local.PosixPath"})
    assert isinstance(value, Inert)
    assert Path(*value.args) == Path("/etc")  # in one part from Python 3.13 on, in two before


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\nlist\n)\x81(K\1K\2e.",  # items for an object
        b"cbuiltins\ndict\n)\x81(K\1K\2u.",
        b"cbuiltins\nlist\nK\1R.",  # arguments that are none
        b"K\1)R.",
        b"]}b.",  # a state for a list, a name, a number
        b"cbuiltins\nlist\n}b.",
        b"K\1}b.",
        b"cbuiltins\nlist\n)\x81)R.",  # a call of an object
        b"cbuiltins\nlist\n)R)\x81.",
        b"ccollections\nOrderedDict\n](K\1K\2e\x85R.",
        b"}((K\1tK\2u.",  # keys whose hash could take for ever
        b"}(]K\2u.",
        b"}(K\1u.",
        b"}(cbuiltins\nlist\nK\2u.",
        b"(K\1.",  # an open mark, no mark, nothing, too much
        b"t.",
        b"e.",
        b".",
        b"K\1K\2.",
        b"h\5.",
        b"\x93.",
        b"K\1K\2\x93.",
        b"\x87.",
        b"((X\7\0\0\0storagetQtQ.",  # an id in an id
        b"(" + b"(" * 1000 + b"t" * 1000 + b"tQ.",
        b"Q.",
        b"]\x94Q.",
        b"cbuiltins\nlist\nQ.",
    ],
)
def test_nonsense_is_damage(tmp_path, program):
    path = write_zip(tmp_path / "x.th", b"\x80\x04" + program)
    with pytest.raises(UserError, match="damaged") as caught:
        read_torch(path, inert=TRAINING_NAMES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "program",
    [
        b"(" * 100_000 + b"t" * 100_000,  # nested tuples, lists, dicts, objects
        b"]" * 100_000 + b"a" * 99_999,
        b"}" + b"K\1}" * 70_000 + b"s" * 70_000,
        b"cbuiltins\nset\nq\0)\x81" + b"h\0)\x81" * 60_000 + b"b" * 60_000,
        b"]q\0h\0a",  # inside itself
        b"()q\0" + b"h\0h\0\x86q\0" * 1000 + b"t",  # two to the thousandth leaves
        b"]q\0(" + b"h\0" * 100_000 + b"e",
        b"]" + b"r\xff\xff\xff\x7f" * 1000,  # a memo of two thousand million places
        b"N" + b"\x94" * 100_000,
        b"(" + text("x" * 1_000_000) + b"q\0" + b"h\0" * 100_000 + b"t",
    ],
)
def test_bombs_are_small(tmp_path, program):
    """What is made is no larger than the file; whoever looks for a model in it finds none."""
    start = time.monotonic()
    path = write_zip(tmp_path / "x.th", b"\x80\x04" + program + b".")
    read_torch(path, inert=TRAINING_NAMES)
    with pytest.raises(UserError, match=r"\b(holds|does not hold)\b"):
        open_source(str(path))
    wrapped = b"\x80\x04}" + text("best_state") + program + b"s."
    with pytest.raises(UserError, match=r"\b(holds|does not hold)\b"):
        open_source(str(write_zip(tmp_path / "x.th", wrapped)))
    assert time.monotonic() - start < 60


def test_an_enormous_structure_is_not_read(tmp_path):
    path = write_zip(tmp_path / "x.th", b"\x80\x02(" + b"N" * (16 << 20) + b"t.")
    with pytest.raises(UserError, match="larger than"):
        read_torch(path)


def test_files_from_before_the_zip(tmp_path):
    # torch's first lines of a file until version 1.6: a magic number, a protocol, the machine.
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"best_state": {}}, [])
    (tmp_path / "old.th").write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    with pytest.raises(UserError, match="does not hold a dict of tensors as best_state") as caught:
        open_source(str(tmp_path / "old.th"))
    assert "\n" not in str(caught.value)
