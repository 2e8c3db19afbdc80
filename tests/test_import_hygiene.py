"""Who may import what: the package starts at once, and torch is nowhere in it."""

import argparse
import ast
import subprocess
import sys
from pathlib import Path

import pytest

from musicgen_jax import cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "musicgen_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"gradio", "optax", "orbax", "sentencepiece", "soundfile", "torch", "transformers"}


def imported(file: Path, *, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports, `from a import b` as both a and a.b."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(result.stdout.splitlines()[-1].split())


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
from musicgen_jax.cli import main
words = ["generate", "batch", "chroma", "convert", "export-torch", "codec", "warmup", "export"]
words += ["finetune", "train"]
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
    commands = [*subcommands(cli._parser())]
    names = "generate batch chroma convert export-torch codec warmup export finetune train"
    assert commands == names.split()


def test_the_package_itself_starts_in_no_time():
    code = "import time; t = time.process_time(); import musicgen_jax; print(time.process_time()-t)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(result.stdout) < 0.3


def test_a_model_needs_little_beyond_the_libraries():
    """Own time of `from musicgen_jax import MusicGen`, once the libraries are loaded."""
    code = """
import sys, time
import jax, numpy, flax.nnx
from orbax.checkpoint import v1
t = time.process_time()
from musicgen_jax import MusicGen
print(time.process_time() - t)
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(result.stdout) < 0.3


def test_the_model_loads_only_what_it_needs():
    loaded = loaded_by("from musicgen_jax import MusicGen")
    assert "jax" in loaded
    assert not loaded & (HEAVY - {"optax", "orbax"})  # flax.nnx itself imports optax


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_torch_and_no_way_back_from_the_converter(file):
    assert not roots(imported(file)) & {"torch", "torchaudio", "transformers"}
    top = imported(file, top_level_only=True)
    assert not any(name.startswith("musicgen_jax.convert") for name in top)


@pytest.mark.parametrize("file", sorted((ROOT / "convert").rglob("*.py")), ids=lambda f: f.name)
def test_the_converter_imports_torch_only_to_verify(file):
    torch = {"torch", "transformers"}
    assert not roots(imported(file, top_level_only=True)) & torch
    assert file.name == "verify.py" or not roots(imported(file)) & torch


@pytest.mark.parametrize(
    "name",
    [
        *("audio", "cli", "codec_command", "choices", "config", "errors", "export_command", "hub"),
        *("tokenizer", "warmup_command"),
    ],
)
def test_files_without_jax(name):
    loaded = loaded_by(f"import musicgen_jax.{name}")
    assert not loaded & {"flax", "jax"}


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("orbax", {"checkpoint.py", "training/"}),
        ("optax", {"training/"}),
        ("sentencepiece", {"tokenizer.py", "testing.py", "nano/"}),
        ("soundfile", {"audio.py"}),
        ("soxr", {"audio.py"}),
        ("safetensors", {"lora_file.py"}),
        ("huggingface_hub", set()),
        ("gradio", {"app.py"}),
    ],
)
def test_a_library_has_one_home(library, owners):
    users = {str(f.relative_to(PACKAGE)) for f in FILES if library in roots(imported(f))}
    assert all(any(user.startswith(owner) for owner in owners) for user in users), users


def test_the_model_does_not_depend_on_training_or_on_the_command_line():
    private = ("musicgen_jax.training", "musicgen_jax.cli", "musicgen_jax.testing")
    outside = ("training/", "nano/", "testing.py", "__main__.py", "app.py", "cli.py")
    for file in FILES:
        where = str(file.relative_to(PACKAGE))
        if where.startswith(outside):
            continue
        names = imported(file)
        assert not any(name.startswith(private) for name in names), where
