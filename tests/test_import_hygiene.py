"""Who may import what: the package starts at once, and torch is nowhere in it."""

import argparse
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from musicgen_jax.commands import cli
from tests.helpers.imports import imported, loaded_by, roots
from tests.helpers.paths import ROOT

PACKAGE = ROOT / "musicgen_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
CONVERTER = sorted((ROOT / "convert").rglob("*.py"))
HEAVY = {"optax", "orbax", "sentencepiece", "soundfile", "torch", "transformers"}


def subcommands(parser) -> dict:
    """The commands of an argument parser."""
    return next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def test_the_reader_of_imports_reads_them(tmp_path):
    file = tmp_path / "example.py"
    file.write_text("import a.b\nfrom c import d\ndef f():\n    import e\n")
    assert imported(file) == {"a.b", "c", "c.d", "e"}
    assert imported(file, top_level_only=True) == {"a.b", "c", "c.d"}


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_by("import musicgen_jax; assert musicgen_jax.__version__")
    assert "musicgen_jax" in loaded
    assert not loaded & (HEAVY | {"flax", "jax", "numpy"})


def test_the_command_line_answers_without_jax():
    code = """
import contextlib, io
from musicgen_jax.commands.cli import main
words = ["generate", "batch", "chroma", "convert", "export-torch", "codec", "warmup", "export"]
words += ["finetune", "train", "evaluate", "listen", "serve", "doctor"]
words += ["info", "models", "bench", "app", "cache", "completion"]
helps = [[], *([word] for word in words), ["codec", "encode"], ["codec", "decode"], ["train", "lm"]]
for arguments in (*([*words, "--help"] for words in helps), ["generate"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(arguments)
        except SystemExit:
            pass
"""
    loaded = loaded_by(code)
    assert "musicgen_jax" in loaded
    assert not loaded & (HEAVY | {"flax", "jax", "jaxlib"})


def test_no_command_is_missing_above():
    text = Path(__file__).read_text()
    named = set(re.findall(r"[a-z-]+", text[text.index("words = ") : text.index("helps = ")]))
    assert set(subcommands(cli._parser())) <= named


def test_the_package_itself_starts_in_no_time():
    code = "import time; t = time.process_time(); import musicgen_jax; print(time.process_time()-t)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(result.stdout) < 0.3


def test_a_model_needs_little_beyond_the_libraries():
    """What `from musicgen_jax import MusicGen` loads, once the libraries are there."""
    code = """
import sys
import jax, numpy, flax.nnx
from orbax.checkpoint import v1
before = set(sys.modules)
from musicgen_jax import MusicGen
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    others = set(result.stdout.split()) - sys.stdlib_module_names
    assert others <= {
        "musicgen_jax",
        "filelock",
        "safetensors",
        "sentencepiece",
        "soundfile",
        "soxr",
        "tqdm",
        "cffi",
        "_cffi_backend",
        "_soundfile",
    }, others


def test_the_model_loads_only_what_it_needs():
    loaded = loaded_by("from musicgen_jax import MusicGen")
    assert "jax" in loaded
    assert not loaded & (HEAVY - {"optax", "orbax"})  # flax.nnx itself imports optax


def test_torch_is_nowhere_but_where_the_converter_verifies():
    torch = {"torch", "torchaudio", "transformers"}
    users = {file.name for file in [*FILES, *CONVERTER] if roots(imported(file)) & torch}
    assert users <= {"verify.py"}
    assert not roots(imported(ROOT / "convert" / "verify.py", top_level_only=True)) & torch


def test_the_converter_is_loaded_by_those_who_need_it():
    """Its command parses without the rest, and whoever converts or exports asks for it then."""
    light = {"command", "to_torch_command"}
    for file in FILES:
        names = imported(file, top_level_only=True)
        used = {name.split(".")[2] for name in names if name.startswith("musicgen_jax.convert.")}
        assert used <= light, file


def test_files_without_jax():
    names = """
        audio config errors storage.hub storage.tokenizer commands.cli commands.generate
        commands.codec commands.export commands.warmup
    """
    code = "\n".join(f"import musicgen_jax.{name}" for name in names.split())
    assert not loaded_by(code) & {"flax", "jax"}


def test_no_test_is_skipped_for_want_of_our_own_code():
    """`importorskip` of a module of ours would skip its tests in silence once the module moves."""
    for file in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("importorskip"):
                (name,) = (ast.literal_eval(argument) for argument in node.args)
                assert name.partition(".")[0] not in ("tests", "musicgen_jax"), file


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("orbax", {"storage/arrays.py", "training/"}),
        ("optax", {"training/"}),
        ("sentencepiece", {"storage/tokenizer.py", "testing.py", "nano/"}),
        ("soundfile", {"audio/"}),
        ("soxr", {"audio/"}),
        ("safetensors", {"storage/lora_file.py"}),
        ("huggingface_hub", set()),
    ],
)
def test_a_library_has_one_home(library, owners):
    users = {str(f.relative_to(PACKAGE)) for f in FILES if library in roots(imported(f))}
    assert all(any(user.startswith(owner) for owner in owners) for user in users), users
