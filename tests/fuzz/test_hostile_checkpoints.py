"""Files that run a command when a trusting reader opens them: all are refused, and nothing is run.

The default run makes a few dozen; `pytest -m fuzz tests/fuzz` makes MUSICGEN_JAX_HOSTILE
(default: 2400). Each attack is first shown to work on Python's own reader.
"""

import contextlib
import io
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from musicgen_jax.convert.clap import NAMES as CLAP_NAMES
from musicgen_jax.convert.files import read_weights
from musicgen_jax.convert.htdemucs import NAMES as HTDEMUCS_NAMES
from musicgen_jax.convert.source import TRAINING_NAMES
from musicgen_jax.convert.torch_zip import read_torch
from musicgen_jax.errors import UserError
from musicgen_jax.storage import codec_file
from tests.fuzz.limits import within_limits
from tests.fuzz.readers import READERS
from tests.helpers.paths import GOLDENS

MANY = int(os.environ.get("MUSICGEN_JAX_HOSTILE", "2400"))
SEED = os.environ.get("MUSICGEN_JAX_FUZZ_SEED", "0")
NAMES = TRAINING_NAMES | HTDEMUCS_NAMES | CLAP_NAMES


# --- Attacks: pickled programs that make a file ---------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def named(rng: random.Random, module: str, name: str) -> bytes:
    """Pushes a function: by its name, by two texts, or from the memo."""
    by_name = f"c{module}\n{name}\n".encode()
    by_texts = text(module) + text(name) + b"\x93"
    remembered = by_name + b"q\x07" + b"0" + b"h\x07"
    return rng.choice((by_name, by_texts, remembered))


def call(rng: random.Random, target: Path) -> bytes:
    """Pushes what a call returns that makes `target`."""
    shell, python = f"touch {target}", f"open({str(target)!r}, 'w').close()"
    module, name, arguments = rng.choice(
        (
            ("os", "system", (shell,)),
            ("posix", "system", (shell,)),
            ("subprocess", "getoutput", (shell,)),
            ("builtins", "exec", (python,)),
            ("builtins", "eval", (python,)),
            ("os", "mkdir", (str(target),)),
            ("os", "symlink", ("/dev/null", str(target))),
            ("os", "mkfifo", (str(target),)),
            ("shutil", "copy", ("/dev/null", str(target))),
            ("numpy", "save", (f"{target}.npy", "x")),
        )
    )
    pushed = b"".join(map(text, arguments))
    found = named(rng, module, name)
    imported = named(rng, "importlib", "import_module") + text(module) + b"\x85R"
    sought = named(rng, "builtins", "getattr") + imported + text(name) + b"\x86R"
    styles = (
        found + b"(" + pushed + b"tR",
        b"(" + pushed + f"i{module}\n{name}\n".encode(),
        b"(" + found + pushed + b"o",
    )
    return rng.choice((*styles, sought + b"(" + pushed + b"tR"))


def hidden(rng: random.Random, pushed: bytes) -> bytes:
    """The same inside something that looks like the structure of a checkpoint."""
    ordered = b"ccollections\nOrderedDict\n"
    places = (
        b"]" + pushed + b"a",
        b"(" + pushed + b"l",
        pushed + b"\x85",
        b"}" + text("state_dict") + pushed + b"s",
        b"(" + text("best_state") + pushed + b"d",
        ordered + b")R" + text("weight") + pushed + b"s",
        ordered + b")R" + b"}" + text("_metadata") + pushed + b"sb",
        ordered + b"]" + text("weight") + pushed + b"\x86a\x85R",
        b"(" + text("storage") + pushed + b"tQ",
        pushed + b"0" + b"}",
    )
    return rng.choice(places)


def attack(rng: random.Random, target: Path) -> bytes:
    pushed = call(rng, target)
    for _ in range(rng.randrange(5)):
        pushed = hidden(rng, pushed)
    return b"\x80" + bytes([rng.randrange(2, 6)]) + pushed + b"."


class Trusting(pickle.Unpickler):
    """What a reader without care does."""

    def persistent_load(self, pid):
        return pid


# --- Files that carry them ------------------------------------------------------------------------

Carrier = Callable[[random.Random, Path, bytes], Callable[[], object]]  # writes; returns the reader


def as_zip(rng, folder, program):
    path, root = folder / "state_dict.bin", rng.choice(("archive", "x", "state_dict"))
    with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as made:
        made.writestr(f"{root}/data.pkl", program)
        made.writestr(f"{root}/byteorder", "little")
        made.writestr(f"{root}/data/0", bytes(64))
        made.writestr(f"{root}/version", "3\n")
    return rng.choice(
        (
            lambda: read_torch(path),
            lambda: read_torch(path, inert=NAMES),
            lambda: read_weights(path),
        )
    )


def as_older_file(rng, folder, program):
    """The chain of pickles that torch wrote before 1.6, with the attack in one of them."""
    path = folder / "vggish.pth"
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    plain = (0x1950A86A20F9469CFC6C, 1001, machine, {}, [])
    chain = [pickle.dumps(value, 2) for value in plain]
    chain[rng.randrange(1, 5)] = program
    path.write_bytes(b"".join(chain))
    return lambda: read_torch(path, inert=rng.choice(((), NAMES)))


def as_pickle(rng, folder, program):
    path = folder / rng.choice(("pytorch_model.bin", "model.th", "model.pt"))
    path.write_bytes(program)
    return lambda: read_weights(path)


def objects(program: bytes) -> bytes:
    """An array of Python objects in NumPy's format."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + program


def replaced(rng: random.Random, path: Path, program: bytes) -> None:
    """Puts the attack in the place of one array."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[rng.choice(sorted(members))] = objects(program)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def as_codes(rng, folder, program):
    path = Path(shutil.copy(GOLDENS / "earlier/codes.npz", folder))
    replaced(rng, path, program)
    return lambda: codec_file.read(path)


def by_reader(name: str) -> Carrier:
    reader = next(reader for reader in READERS if reader.name == name)

    def carrier(rng, folder, program):
        path = reader.make(folder)
        if path.suffix == ".npz":
            replaced(rng, path, program)
        else:
            path.write_bytes(objects(program))
        return lambda: reader.read(path)

    return carrier


CARRIERS: tuple[Carrier, ...] = (
    *(as_zip,) * 4,
    *(as_older_file,) * 2,
    as_pickle,
    as_codes,
    *map(by_reader, ("statistics", "shards codes", "resumable codes")),
)


# --- The tests ------------------------------------------------------------------------------------


def try_many(folder: Path, count: int, seed: str) -> None:
    rng = random.Random(f"hostile checkpoints {seed}")
    for i in range(count):
        here = folder / str(i)
        here.mkdir()
        target = here / "attacked"
        made = (target, here / "attacked.npy")
        program = attack(rng, target)
        with contextlib.suppress(Exception):  # what is done with the result of the call may fail
            Trusting(io.BytesIO(program)).load()
        assert any(map(os.path.lexists, made)), f"input {i} is harmless: {program!r}"
        for path in made:
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        read = rng.choice(CARRIERS)(rng, here, program)
        with within_limits(), pytest.raises(UserError):
            read()
        assert not any(map(os.path.lexists, made)), f"input {i} has run: {program!r}"
        shutil.rmtree(here)


def test_some_hostile_checkpoints(tmp_path):
    try_many(tmp_path, 40, "quick")


@pytest.mark.fuzz
def test_many_hostile_checkpoints(tmp_path, capsys):
    try_many(tmp_path, MANY, SEED)
    with capsys.disabled():
        print(f"\n{MANY} hostile checkpoints: all refused, nothing was run")
