"""Damaged files are read, or refused in one line: no traceback, no hang, no gigabyte.

The default run tries a few hundred damaged files; `pytest -m fuzz tests/fuzz` tries
MUSICGEN_JAX_FUZZ (default: 20000) per reader and prints how many were refused. A fault names the
file, which goes to `corpus/READER/` with its mending.
"""

import itertools
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from musicgen_jax.errors import UserError
from tests.fuzz import limits
from tests.fuzz.limits import within_limits
from tests.fuzz.mutations import mutate
from tests.fuzz.readers import READERS

CORPUS = Path(__file__).parent / "corpus"
MANY = int(os.environ.get("MUSICGEN_JAX_FUZZ", "20000"))
names = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)


def tried(reader, file: Path, content: bytes) -> str:
    """ "read" or "refused"."""
    file.write_bytes(content)
    outcome = "refused"
    with within_limits():
        reader.read(file)
        outcome = "read"
    return outcome


def fuzz(reader, folder: Path, count: int, seed: str) -> dict[str, int]:
    file = reader.make(folder)
    valid = file.read_bytes()
    assert tried(reader, file, valid) == "read"
    rng = random.Random(f"{reader.name} {seed}")
    counts = {"read": 0, "refused": 0}
    for i in range(count):
        content = mutate(rng, valid)
        try:
            counts[tried(reader, file, content)] += 1
        except BaseException as error:
            kept = Path(tempfile.mkdtemp(prefix="fuzz-")) / file.name
            kept.write_bytes(content)
            raise AssertionError(f"{reader.name}, input {i}: {error!r:.300}; see {kept}") from error
    return counts


@names
def test_some_damaged_files(reader, tmp_path):
    counts = fuzz(reader, tmp_path, 3 if reader.costly else 40, "quick")
    assert sum(counts.values())


@pytest.mark.fuzz
@names
def test_many_damaged_files(reader, tmp_path, capsys):
    count = MANY // 50 if reader.costly else MANY
    counts = fuzz(reader, tmp_path, count, os.environ.get("MUSICGEN_JAX_FUZZ_SEED", "0"))
    with capsys.disabled():
        print(f"\n{reader.name}: {counts['read']} read, {counts['refused']} refused")


@names
def test_what_once_failed(reader, tmp_path):
    file = reader.make(tmp_path)
    for path in sorted((CORPUS / reader.name.replace(" ", "-")).glob("*")):
        tried(reader, file, path.read_bytes())


def test_the_limits_notice(tmp_path):
    with pytest.raises(RuntimeError), within_limits():
        raise RuntimeError("not a refusal")
    with within_limits():
        raise UserError("refused")


def test_memory_is_counted_for_each_input(tmp_path):
    with within_limits():
        np.ones(100 << 17)  # 100 MB, which are given back
    with pytest.raises(AssertionError, match="MB more"), within_limits():
        np.ones(1100 << 17)


def test_a_hang_is_noticed(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.05)
    with pytest.raises(limits.TookTooLong), within_limits():
        any(x for x in itertools.repeat(0))
    with pytest.raises(limits.TookTooLong), within_limits():
        time.sleep(60)
