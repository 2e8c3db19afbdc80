"""Reading weight files: hostile and damaged ones end in one clear line and run nothing."""

import io
import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.convert.files import read_weights
from musicgen_jax.convert.tensors import LazyTensor
from musicgen_jax.convert.torch_writer import write_torch
from musicgen_jax.convert.torch_zip import read_torch
from musicgen_jax.errors import UserError
from tests.helpers.official_files import draw

# --- Hostile and damaged files -----------------------------------------------------------------


def write_zip(path, program, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        for name, data in members.items():
            archive.writestr(f"x/{name}", data)
    return path


class Attack:
    """Unpickled, it would create a file."""

    def __init__(self, target, wrap=lambda x: x):
        self.target, self.wrap = str(target), wrap

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class Nested:
    """The call hides in the arguments of an allowed one."""

    def __init__(self, attack):
        self.attack = attack

    def __reduce__(self):
        return dict, ([("a", self.attack)],)


class State:
    """The call hides in the state of an object."""

    def __init__(self, attack):
        self.attack = attack

    def __reduce__(self):
        from collections import OrderedDict

        return OrderedDict, (), {"x": self.attack}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: {"best_state": {"k": a}}, Nested, State])
def test_hostile_pickles_are_refused_and_not_run(tmp_path, protocol, wrap):
    target = tmp_path / "attacked"
    program = pickle.dumps(wrap(Attack(target)), protocol)
    pickle.loads(program)
    assert target.exists()  # the attack works on a reader that trusts
    target.unlink()
    path = write_zip(tmp_path / "x.bin", program)
    with pytest.raises(UserError, match="is refused") as caught:
        read_torch(path)
    assert not target.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "os system", "builtins eval", "builtins getattr", "torch load", "torch.hub load",
        "collections defaultdict", "torch._utils _rebuild_qtensor", "numpy.core.multiarray scalar",
        "musicgen_jax.convert.torch_zip _Storage", "omegaconf.dictconfig DictConfig",
        "evil HalfStorage", "collections _rebuild_tensor_v2", "torch OrderedDict",
        "__builtin__ dict",
    ],
)  # fmt: skip
def test_every_other_name_is_refused(tmp_path, name):
    program = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n."
    path = write_zip(tmp_path / "x.bin", program)
    with pytest.raises(UserError, match="refused: it names") as caught:
        read_torch(path)
    assert repr(name.replace(" ", ".")) in str(caught.value)


STORAGE = b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"


def tensor_program(offset=0, shape=(2,), stride=(1,), numel=4, after=b""):
    def number(n):
        return b"J" + int(n).to_bytes(4, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + STORAGE + number(numel) + b"tQ"
    arguments = storage + after + number(offset) + numbers(shape) + numbers(stride) + b"\x89}"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
    return b"\x80\x02}X\x01\0\0\0a" + tensor + b"s."


@pytest.mark.parametrize(
    "fault",
    [
        {"offset": 3}, {"offset": -1}, {"offset": 2**31 - 1}, {"shape": (5,)}, {"shape": (-2,)},
        {"shape": (2, 2), "stride": (1,)}, {"shape": (2, 2), "stride": (3, 1)},
        {"shape": (2,), "stride": (4,)}, {"shape": (2,), "stride": (-1,), "offset": 3},
        {"shape": (1000, 1000), "stride": (0, 0)}, {"shape": (1,) * 40, "stride": (1,) * 40},
        {"numel": 5}, {"numel": 2**30}, {"numel": -4},
        # An attempt to change a checked storage: BUILD with new values for its fields.
        {"after": b"(N}X\x05\0\0\0numelJ\0\0\0\x7fstb"},
        {"after": b"}X\x05\0\0\0numelJ\0\0\0\x7fsb"},
    ],
)  # fmt: skip
def test_tensors_stay_inside_their_storage(tmp_path, fault):
    data = np.arange(4, dtype=np.float32).tobytes()
    good = write_zip(tmp_path / "good.bin", tensor_program(), **{"data/0": data})
    np.testing.assert_array_equal(read_torch(good)["a"].read(), [0, 1])
    bad = write_zip(tmp_path / "bad.bin", tensor_program(**fault), **{"data/0": data})
    with pytest.raises(UserError, match="damaged"):
        read_torch(bad)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02r\xff\xff\xff\xff.",  # a memo of four thousand million entries
        b"\x80\x02" + b"(" * 100_000,
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02]" + b"]a" * 50_000 + b".",
        b"garbage",
        b"\x80\x02X\x04\0\0\0storQ.",
        b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R.",
    ],
)
def test_broken_programs(tmp_path, program):
    path = write_zip(tmp_path / "x.bin", program)
    try:
        value = read_torch(path)
    except UserError:
        return
    with pytest.raises(UserError, match="does not hold a dict of tensors"):
        read_weights(path)
    assert not isinstance(value, dict)


def test_compressed_and_foreign_zips(tmp_path):
    write_torch(tmp_path / "x.bin", {"a": np.zeros(10_000, np.float32)})
    with (
        zipfile.ZipFile(tmp_path / "x.bin") as old,
        zipfile.ZipFile(tmp_path / "bomb.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match="compressed"):
        read_torch(tmp_path / "bomb.bin")
    with zipfile.ZipFile(tmp_path / "foreign.bin", "w") as archive:
        archive.writestr("letter.txt", "dear")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        read_torch(tmp_path / "foreign.bin")
    (tmp_path / "old.bin").write_bytes(pickle.dumps(119547037146038801333356, 2))
    with pytest.raises(UserError, match="truncated or damaged"):
        read_torch(tmp_path / "old.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"not a file that torch\.save wrote"):
        read_torch(tmp_path / "empty.bin")
    path = write_zip(tmp_path / "big.bin", b"\x80\x02}.", byteorder=b"big")
    with pytest.raises(UserError, match="big-endian"):
        read_torch(path)


def file_bytes():
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    value = {
        "best_state": {"a": draw(rng, (3, 4), np.float16), "b": draw(rng, (5,))},
        "xp.cfg": "sample_rate: 32000\n",
    }
    write_torch(buffer, value)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_everything(path):
    def walk(value):
        if isinstance(value, LazyTensor):
            assert value.read().shape == value.shape
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)

    walk(read_torch(path))


def check_reads_or_explains(path):
    """A UserError of one line is an answer too; nothing else is."""
    try:
        read_everything(path)
    except UserError as error:
        message = str(error)
        assert "\n" not in message


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_a_user_error_or_nothing(tmp_path_factory, flips):
    data = bytearray(FILE)
    for place, change in flips:
        data[place % len(data)] ^= change
    path = tmp_path_factory.getbasetemp() / "flipped.bin"
    path.write_bytes(data)
    check_reads_or_explains(path)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.integers(0, 10**6), st.integers(1, 255))
def test_flipped_programs_with_a_right_checksum(tmp_path_factory, place, change, place2, change2):
    """As above, past the zip's own checksum."""
    with zipfile.ZipFile(io.BytesIO(FILE)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in members if name.endswith("data.pkl")]
    program = bytearray(members[name])
    program[place % len(program)] ^= change
    program[place2 % len(program)] ^= change2
    path = tmp_path_factory.getbasetemp() / "program.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in (members | {name: bytes(program)}).items():
            archive.writestr(member, data)
    check_reads_or_explains(path)


def test_every_truncation(tmp_path):
    path = tmp_path / "x.bin"
    for length in range(0, len(FILE) - 1, 7):
        path.write_bytes(FILE[:length])
        with pytest.raises(UserError):
            read_everything(path)


def test_damaged_storage_is_found_when_read(tmp_path):
    data = bytearray(FILE)
    place = FILE.index(draw(np.random.default_rng(0), (3, 4), np.float16).tobytes())
    data[place] ^= 1
    (tmp_path / "x.bin").write_bytes(data)
    state = read_torch(tmp_path / "x.bin")["best_state"]
    with pytest.raises(UserError, match="CRC"):
        state["a"].read()
    state["b"].read()


FILE = file_bytes()


# --- safetensors and shards --------------------------------------------------------------------


def test_safetensors_of_every_float(tmp_path):
    rng = np.random.default_rng(0)
    dtypes = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
    arrays = {str(i): draw(rng, (3, i + 1), dtype) for i, dtype in enumerate(dtypes)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    read = read_weights(tmp_path / "x.safetensors")
    for name, array in arrays.items():
        assert (read[name].shape, read[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(read[name].read(), array)


@pytest.mark.parametrize("cut", [0, 5, 60, -1])
def test_truncated_safetensors(tmp_path, cut):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.ones(4, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_weights(path)


def test_shards(tmp_path):
    arrays = {"a": np.ones(2, np.float32), "b": np.zeros(3, np.float16)}
    safetensors.numpy.save_file({"a": arrays["a"]}, tmp_path / "1.safetensors")
    write_torch(tmp_path / "2.bin", {"b": arrays["b"]})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.bin"}}))
    read = read_weights(index)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name].read(), array)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../secret.safetensors"}, "not the name of a file"),
        ({"a": "/etc/passwd"}, "not the name of a file"),
        ({"a": "..\\secret"}, "not the name of a file"),
        ({"a": "sub/x.safetensors"}, "not the name of a file"),
        ({"a": ".."}, "not the name of a file|not next to it"),
        ({"a": 3}, "not the name of a file"),
        ({"a": "model.safetensors.index.json"}, "not next to it"),
        ({"a": "absent.safetensors"}, "not next to it"),
        ({"b": "x.safetensors"}, "lacks b"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_bad_indices(tmp_path, weight_map, message):
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.numpy.save_file({"a": np.ones(1)}, folder / "x.safetensors")
    safetensors.numpy.save_file({"a": np.ones(1)}, tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        read_weights(index)
