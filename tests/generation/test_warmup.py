"""What warm_up compiled, generate does not compile again: here, and in the next process."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.commands import cli
from musicgen_jax.errors import UserError
from musicgen_jax.generation import program
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.generation.warmup import warm_up
from musicgen_jax.runtime.compile_cache import counting
from musicgen_jax.runtime.tuning import CPU
from tests.helpers import shallow

pytestmark = pytest.mark.usefixtures("nothing_cached")

GREEDY = Sampling(use_sampling=False)


@pytest.fixture(scope="module")
def model():
    return testing.random_model(shallow.TEXT)


def test_nothing_is_left_to_compile_for_any_seed_and_text_of_that_length(model):
    jax.clear_caches()  # other tests may have compiled the same
    stages = list(warm_up(model.parts, [0.7], tokens=[16], sampling=Sampling(top_k=20)))
    assert [stage.name for stage in stages] == [
        "text of 16 tokens", "language model, 0.7 s, 16 tokens", "codec, 0.7 s"
    ]  # fmt: skip
    assert all(stage.counts.compiled and not stage.counts.loaded for stage in stages)
    with counting() as counts:
        for text, seed in (("one", 1), ("four words or so", 2)):
            model.generate([text], duration=0.7, seed=seed, top_k=20, cfg_coef=2.5, temperature=0.9)
    assert counts.compiled == 0
    with counting() as counts:  # the count does count
        model.generate(["one", "two"], duration=0.7, top_k=20)
    assert counts.compiled > 0
    assert counts.seconds > 0


def test_long_pieces_in_a_batch_and_streams(model):
    for _ in warm_up(model.parts, [7.0], batch=2, tokens=[0], sampling=GREEDY):
        pass
    with counting() as counts:
        out = model.generate([None, None], duration=7.0, use_sampling=False)
    assert out.codes.shape[2] == 350
    assert counts.compiled == 0

    for _ in warm_up(model.parts, [2.0], tokens=[16], sampling=GREEDY, chunk_seconds=0.5):
        pass
    with counting() as counts:
        audio = np.concatenate(
            list(model.stream(["x"], duration=2.0, use_sampling=False, chunk_seconds=0.5)), axis=2
        )
    assert audio.shape == (1, 1, 8000)
    assert counts.compiled == 0


def test_each_length_of_a_cache_that_grows(model, monkeypatch):
    growing = dataclasses.replace(CPU, grow_cache_above=(0.0, 0))
    monkeypatch.setattr(model.lm, "tuning", growing)
    names = [stage.name for stage in warm_up(model.parts, [2.9], tokens=[0], sampling=GREEDY)]
    assert names[1:-1] == [f"language model, {s} s, 0 tokens" for s in ("1.22", "2.5", "2.9")]
    jitted = (program._advance, program._start)
    before = [f._cache_size() for f in jitted]
    model.generate([None], duration=2.9, use_sampling=False)
    assert [f._cache_size() for f in jitted] == before


def test_without_durations_every_length_of_the_language_model(model):
    names = [stage.name for stage in warm_up(model.parts, tokens=[16], sampling=Sampling(top_k=20))]
    assert names == [
        "text of 16 tokens", "language model, 3 s, 16 tokens", "codec, 8 s", "codec, 3 s"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"batch": 0}, "batch"), ({"tokens": [-1]}, "tokens"), ({"durations": [0]}, "duration")],
)
def test_bad_arguments(model, settings, word):
    with pytest.raises(UserError, match=word):
        list(warm_up(model.parts, **settings))


def test_without_a_cache_the_command_says_so(capsys):
    assert cli.main(["warmup"]) == 2
    assert "MUSICGEN_JAX_CACHE=off" in capsys.readouterr().err


_GENERATE = """
import json, sys
from musicgen_jax.commands import cli
from musicgen_jax.runtime.compile_cache import counting
with counting() as counts:
    assert cli.main(["generate", "a", "--model", sys.argv[1], "--duration", "0.5"]) == 0
print(json.dumps([counts.compiled, counts.loaded]))
"""


@pytest.mark.slow
def test_the_next_process_compiles_nothing(tmp_path):
    folder = tmp_path / "debug"
    testing.save_random_model(folder, shallow.TEXT)
    environment = os.environ | {"MUSICGEN_JAX_CACHE": str(tmp_path / "cache")}

    def run(*arguments):
        result = subprocess.run(
            [sys.executable, *arguments],
            env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()[-1]

    words = ["warmup", "--model", str(folder), "--duration", "0.5", "--tokens", "16"]
    told = run("-m", "musicgen_jax", *words)
    assert told.startswith("ready: ")
    assert told.endswith(f", in {tmp_path / 'cache'}")
    assert " 0 compiled" not in told
    compiled, loaded = json.loads(run("-c", _GENERATE, str(folder)))
    assert compiled == 0
    assert loaded > 0
