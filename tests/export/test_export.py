"""Exported models give what the model gives, in a process that cannot import this package."""

import json
import os
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.commands import cli
from musicgen_jax.errors import UserError
from musicgen_jax.export import program as program_of
from musicgen_jax.generation.decode import example_keys
from tests.helpers import shallow

TEXTS = ["two words", None]
FRAMES, TOKENS = 50, 16
FILES = {
    "LICENSE", "audio.bin", "audio.npz", "greedy.bin", "language.npz", "manifest.json", "run.py",
    "sample.bin", "start.bin", "text.bin", "text.npz", "tokenizer.model",
}  # fmt: skip

# What a stranger would write: no musicgen_jax, no flax, only the folder.
_STRANGER = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("musicgen_jax", "flax", "orbax", "torch"):
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
try:
    import musicgen_jax
except ImportError:
    pass
else:
    raise SystemExit("the package can be imported")
import warnings
warnings.simplefilter("error")
import jax
import numpy as np
jax.config.update("jax_default_matmul_precision", "highest")
sys.path.insert(0, sys.argv[1])
from run import Exported
exported = Exported(sys.argv[1])
given = np.load(sys.argv[2])
vectors = exported.text(given["ids"], given["mask"])
results = {}
for name in sys.argv[4:]:
    greedy, frames = name == "greedy", 11 if name == "short" else 50
    codes = exported.codes(vectors, given["mask"], frames, seed=5, greedy=greedy, temperature=0.9)
    results |= {name: codes, f"{name}_audio": exported.audio(codes)}
np.savez(sys.argv[3], **results)
"""


@pytest.fixture(scope="module", params=["debug", "debug-stereo"])
def exported(request, tmp_path_factory):
    """A model and the folder that it was exported to, with the whole way of the command line."""
    config = {c.name: c for c in (shallow.TEXT, shallow.STEREO)}[request.param]
    base = tmp_path_factory.mktemp(request.param)
    testing.save_random_model(base / "model", config)
    words = ["export", base / "model", base / "out", "--batch", 2, "--tokens", 9, "--top-k", 20]
    if config.audio_channels == 2:  # run without a top_p, which is off then as everywhere
        words.append("--nucleus")
    assert cli.main([str(word) for word in words]) == 0
    from musicgen_jax import MusicGen

    return MusicGen.from_pretrained(base / "model"), base / "out"


def test_a_stranger_gets_the_same_codes_and_audio(exported, tmp_path):
    model, folder = exported
    assert set(os.listdir(folder)) == FILES
    ids, mask = model.tokenizer(TEXTS)
    padding = ((0, 0), (0, TOKENS - ids.shape[1]))
    np.savez(tmp_path / "in.npz", ids=np.pad(ids, padding), mask=np.pad(mask, padding))
    # In stereo, where the same programs are a little wider, one way is enough.
    names = ["sample"] if model.audio_channels == 2 else ["sample", "greedy", "short"]
    files = [folder, tmp_path / "in.npz", tmp_path / "out.npz"]
    command = [sys.executable, "-c", _STRANGER, *files, *names]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""

    theirs = np.load(tmp_path / "out.npz")
    settings = {"seed": 5, "top_k": 20, "temperature": 0.9}
    for name in names:
        frames = 11 if name == "short" else FRAMES
        ours = model.generate(
            TEXTS, duration=frames / 50, use_sampling=name != "greedy", **settings
        )
        assert ours.codes.shape[2] == frames
        np.testing.assert_array_equal(theirs[name], ours.codes)
        np.testing.assert_allclose(
            theirs[f"{name}_audio"], ours.audio, rtol=0, atol=1e-5 * np.abs(ours.audio).max()
        )
    if len(names) > 1:
        assert not np.array_equal(theirs["greedy"], theirs["sample"])


def test_the_manifest_says_what_the_programs_take(exported):
    model, folder = exported
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert (manifest["batch"], manifest["tokens"], manifest["frames"]) == (2, TOKENS, 150)
    assert manifest["delays"] == list(model.config.lm.delays)
    for entry in manifest["weights"].values():
        with np.load(folder / entry["file"]) as file:
            assert {k: list(file[k].shape) for k in file.files} == {
                k: a["shape"] for k, a in entry["arrays"].items()
            }
    for entry in manifest["programs"].values():
        program = jax.export.deserialize(bytearray((folder / entry["file"]).read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu")
        stated = []
        for argument in entry["arguments"]:
            if "weights" in argument:
                argument = {"tree": manifest["weights"][argument["weights"]]["arrays"]}
            leaves = argument.get("tree", {"": argument})
            stated += [leaves[key] for key in sorted(leaves)]
        taken = [{"shape": [*a.shape], "dtype": str(a.dtype)} for a in program.in_avals]
        for one, other in zip(stated, taken, strict=True):
            assert [str(n) for n in one["shape"]] == [str(n) for n in other["shape"]]
            assert one["dtype"] == other["dtype"]
        # Weights are arguments: nothing of their size is inside.
        assert (folder / entry["file"]).stat().st_size < 100_000


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_decoding_lowers_for_what_is_not_here_without_pallas(platform):
    model = testing.random_model(shallow.TEXT, dtype="bfloat16")
    programs, weights = program_of.trace(
        model,
        batch=1,
        frames=1500,
        tokens=16,
        top_k=250,
        nucleus=True,
        platforms=(platform,),
    )
    assert set(programs) == {"text", "start", "greedy", "sample", "audio"}
    for program, _ in programs.values():
        assert program.platforms == (platform,)
        text = program.mlir_module()
        assert "tpu_custom_call" not in text
        assert "triton" not in text
        assert "mosaic" not in text
    assert "stablehlo.while" in programs["sample"][0].mlir_module()
    for name, array in weights["language"].items():
        assert array.dtype == ("float32" if "norm" in name else "bfloat16")
    ids = np.ones((1, 16), np.int32)
    with pytest.raises(ValueError, match=platform):
        programs["text"][0].call(weights["text"], ids, ids > 0)


def test_bfloat16_survives_the_files(tmp_path):
    model = testing.random_model(shallow.TEXT, dtype="bfloat16")
    folder = program_of.export_model(model, tmp_path / "out", tokens=16, platforms=["cpu"])
    entry = json.loads((folder / "manifest.json").read_text())["weights"]["language"]
    name = "heads.weight"
    assert entry["arrays"][name]["dtype"] == "bfloat16"
    with np.load(folder / entry["file"]) as file:
        stored = file[name].view("bfloat16")
    np.testing.assert_array_equal(stored, np.asarray(model.lm.heads.weight[...]))


def test_seeds_are_those_of_generate():
    rows = np.arange(3, dtype=np.uint32)
    for seed in (0, 2**32 - 1):
        keys = jax.jit(program_of.keys_of)(np.full_like(rows, seed), rows)
        np.testing.assert_array_equal(
            jax.random.key_data(keys), jax.random.key_data(example_keys(seed, 3))
        )


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"batch": 0}, "batch"),
        ({"tokens": 0}, "tokens"),
        ({"duration": 31.0}, "duration"),
        ({"duration": 0.001}, "duration"),
        ({"top_k": -1}, "top_k"),
        ({"platforms": []}, "platforms"),
        ({"platforms": ["gpu"]}, "platforms"),
    ],
)
def test_bad_arguments(tmp_path, settings, word):
    with pytest.raises(UserError, match=word):
        program_of.export_model(testing.random_model(shallow.TEXT), tmp_path / "out", **settings)
    assert os.listdir(tmp_path) == []


def test_refuses_what_it_cannot_do_and_what_is_there(tmp_path):
    with pytest.raises(UserError, match="debug-melody takes melodies"):
        program_of.export_model(testing.random_model(shallow.MELODY), tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(UserError, match="exists already"):
        program_of.export_model(testing.random_model(shallow.TEXT), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]
