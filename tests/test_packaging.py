"""pyproject.toml says what the tree holds: what is not named there is not in the wheel."""

import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest

import musicgen_jax
from musicgen_jax.commands import cli
from tests.helpers.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]


def packages_under(folder: Path, name: str) -> set[str]:
    inits = folder.rglob("__init__.py")
    return {".".join((name, *init.parent.relative_to(folder).parts)) for init in inits}


def test_every_package_is_listed():
    found = packages_under(ROOT / "musicgen_jax", "musicgen_jax")
    found |= packages_under(ROOT / "convert", "musicgen_jax.convert")
    assert sorted(found) == sorted(SETUPTOOLS["packages"])


def test_data_files_are_listed_and_not_found():
    """Otherwise setuptools warns that it ignores packages such as musicgen_jax.nano.model."""
    assert SETUPTOOLS["include-package-data"] is False
    listed = SETUPTOOLS["package-data"]
    data = {file for file in (ROOT / "musicgen_jax").rglob("*") if file.is_file()}
    data = {file for file in data if file.suffix not in (".py", ".pyc")}
    for name, patterns in listed.items():
        folder = ROOT.joinpath(*name.split("."))
        found = {file for pattern in patterns for file in folder.glob(pattern)}
        assert found, name
        data -= found
    assert not data


def test_the_source_distribution_has_no_half_of_the_tests():
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    assert "prune tests" in lines


def test_every_folder_of_code_is_a_package():
    for top in ("musicgen_jax", "convert"):
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), file


def test_the_converter_is_mapped_into_the_package():
    assert SETUPTOOLS["package-dir"]["musicgen_jax.convert"] == "convert"
    module = importlib.import_module("musicgen_jax.convert")
    assert callable(module.run)
    assert callable(module.convert)


def test_versions_agree():
    assert PROJECT["version"] == musicgen_jax.__version__
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited == PROJECT["version"]
    assert re.search(r"^## \[", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_console_script_exists():
    module, _, function = PROJECT["scripts"]["musicgen-jax"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_public_names_exist():
    for name in musicgen_jax.__all__:
        assert getattr(musicgen_jax, name) is not None
        assert name in dir(musicgen_jax)


def test_torch_is_for_parity_alone_and_nothing_is_capped():
    extras = PROJECT["optional-dependencies"]
    for name, requirements in {"": PROJECT["dependencies"], **extras}.items():
        for requirement in requirements:
            assert name == "parity" or "torch" not in requirement
            # Newer jax, flax and Python must install; torch is the reference and is pinned.
            assert requirement.startswith("torch") or not re.search(r"<|==|~=", requirement)
    assert "<" not in PROJECT["requires-python"]


def test_licences_are_clear():
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    readme = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")
    assert "CC-BY-NC 4.0" in readme, "the official weights' licence"


def test_the_bundled_model_is_complete_and_small():
    from musicgen_jax.storage import checkpoint, hub

    folder = hub.find_model("nano")
    config = checkpoint.load_config(folder)  # raises unless complete
    assert config.name == "nano"
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 12e6
    assert (folder.parent / "MODEL_CARD.md").exists()


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.cuda"])
def test_a_container_file_copies_and_starts_what_there_is(name):
    """Nothing here builds images; this keeps the files in step with the package."""
    text = (ROOT / name).read_text()
    for words in re.findall(r"^COPY (.*)$", text, re.M):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists(), source
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "musicgen_jax"}
    assert needed <= set(re.findall(r"[\w.]+", " ".join(re.findall(r"^COPY (.*)$", text, re.M))))
    (extras,) = re.findall(r'"/src\[([\w,]+)\]"', text)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    (start,) = re.findall(r"^CMD (.*)$", text, re.M)
    assert callable(cli._parser().parse_args(json.loads(start)).run)
    variables = set(re.findall(r"\b(MUSICGEN_JAX_\w+)", text))
    code = "".join(file.read_text() for file in (ROOT / "musicgen_jax").rglob("*.py"))
    assert all(f'"{variable}"' in code for variable in variables)
