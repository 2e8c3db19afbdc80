"""`musicgen-jax doctor`: it ends with a report whatever is wrong, and names what is."""

import importlib
import importlib.metadata
import json
import os
import socket

import pytest

from musicgen_jax.commands import cli, doctor_checks, requirements, sizes
from musicgen_jax.config import OFFICIAL_MODELS
from musicgen_jax.runtime import program_store


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    """Runs it with folders of its own and no network: exit code, findings by name, stderr."""
    for name in ("MUSICGEN_JAX_CACHE", "MUSICGEN_JAX_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor_checks, "_SIZES", ("small",))

    def unreachable(*_, **__):
        raise OSError("no network in a test")

    monkeypatch.setattr(socket, "create_connection", unreachable)

    def call(*arguments):
        code = cli.main(["doctor", "--json", *(arguments or ["--no-music"])])
        out, err = capsys.readouterr()
        document = json.loads(out)
        found = {finding["check"]: finding for finding in document["findings"]}
        assert document["ok"] == (code == 0)
        assert len(found) == len(document["findings"])
        return code, found, err

    return call


def wrong(found) -> list[str]:
    return [name for name, finding in found.items() if finding["state"] == "wrong"]


def test_a_healthy_machine(doctor, tmp_path):
    code, found, err = doctor()
    assert (code, wrong(found), err) == (0, [], "")
    assert found["versions"]["data"]["jax"] == importlib.metadata.version("jax")
    assert found["devices"]["data"]["platform"] == "cpu"
    programs = found["compiled programs"]["data"]
    assert programs["path"] == str(tmp_path / "cache/musicgen-jax/compiled")
    assert programs["writable"]
    assert programs["private"]
    assert found["network"]["state"] == "note"
    assert found["network"]["data"]["online"] is False


@pytest.mark.parametrize("endpoint", ["http://[x", "http://hub:port"])
def test_an_endpoint_that_is_not_an_address_is_named(doctor, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    code, found, _ = doctor()
    assert code == 0
    assert f"HF_ENDPOINT is not an address: {endpoint}" in found["network"]["text"]


def test_it_makes_music_and_checks_its_tokens(doctor):
    code, found, _ = doctor("--json")
    assert code == 0
    data = found["music"]["data"]
    assert data["audible"]
    assert data["agreement"] == 1.0
    assert data["warm_seconds"] < data["first_seconds"]


def test_for_people_it_prints_a_line_for_each_finding(doctor, capsys):
    assert cli.main(["doctor", "--no-music"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "note") for line in lines)
    assert any(line.startswith("ok    sizes: fits: small in float32") for line in lines)


@pytest.mark.parametrize("there", ["0.3.1", "99.0.0"])
def test_jaxlib_of_another_version(doctor, monkeypatch, there):
    version = importlib.metadata.version

    def other(name):
        return there if name == "jaxlib" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", other)
    code, found, err = doctor()
    assert code == 2
    assert wrong(found) == ["versions"]
    assert "needs jaxlib" in found["versions"]["text"]
    assert f"{there} is installed" in found["versions"]["text"]
    assert err.count("\n") == 1
    assert "versions" in err


def test_a_package_that_is_missing(doctor, monkeypatch):
    version = importlib.metadata.version

    def other(name):
        if name == "soxr":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", other)
    code, found, _ = doctor()
    assert code == 2
    assert "soxr is not installed" in found["versions"]["text"]


def test_jax_that_cannot_be_imported_stops_no_other_check(doctor, monkeypatch):
    imported = importlib.import_module

    def fails(name, *rest):
        if name == "jax":
            raise RuntimeError("jaxlib is version 0.3.1, but this version of jax requires 0.10.1")
        return imported(name, *rest)

    monkeypatch.setattr(importlib, "import_module", fails)
    code, found, _ = doctor("--json")
    assert code == 2
    assert wrong(found) == ["libraries"]
    assert "jaxlib is version 0.3.1" in found["libraries"]["text"]
    assert found["compiled programs"]["state"] == "ok"
    assert found["music"]["state"] == "note"


def test_a_cache_that_is_a_file(doctor, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MUSICGEN_JAX_CACHE", str(tmp_path / "file"))
    code, found, _ = doctor()
    assert (code, wrong(found)) == (2, ["compiled programs"])
    assert "MUSICGEN_JAX_CACHE" in found["compiled programs"]["text"]


def test_a_cache_with_a_damaged_program(doctor, tmp_path):
    folder = tmp_path / "cache/musicgen-jax/compiled"
    folder.mkdir(parents=True, mode=0o700)
    store = program_store.ProgramStore(folder, -1)
    store.put("jit_whole-0", b"a program")
    store.put("jit_cut-1", b"another program")
    assert doctor()[0] == 0
    entry = folder / "jit_cut-1-cache"
    entry.write_bytes(entry.read_bytes()[:-1])
    code, found, _ = doctor()
    assert (code, wrong(found)) == (2, ["compiled programs"])
    assert found["compiled programs"]["data"]["damaged"] == 1
    assert store.get("jit_whole-0") == b"a program"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of files here")
def test_a_cache_that_others_can_write_to(doctor, tmp_path):
    folder = tmp_path / "cache/musicgen-jax/compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    code, found, _ = doctor()
    assert (code, wrong(found)) == (2, ["compiled programs"])
    assert found["compiled programs"]["data"]["private"] is False
    assert f"others can write to {folder}" in found["compiled programs"]["text"]


def test_no_home_folder(doctor, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    from pathlib import Path

    def expanduser(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    code, found, _ = doctor()
    assert (code, wrong(found)) == (2, ["compiled programs", "models"])


def test_music_that_fails(doctor, monkeypatch):
    from musicgen_jax.model import MusicGen

    def fails(*_, **__):
        raise ValueError("the weights are gone")

    monkeypatch.setattr(MusicGen, "from_pretrained", fails)
    code, found, _ = doctor("--json")
    assert (code, wrong(found)) == (2, ["music"])
    assert "the weights are gone" in found["music"]["text"]


def test_no_device(doctor, monkeypatch):
    import jax

    def fails():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    code, found, _ = doctor("--json")
    assert (code, wrong(found)) == (2, ["devices"])
    assert "JAX_PLATFORMS=cuda" in found["devices"]["text"]


@pytest.mark.parametrize(
    ("there", "rule", "fits"),
    [
        ("0.10.2", "<=0.10.2,>=0.10.1", True),
        ("0.10.0", "<=0.10.2,>=0.10.1", False),
        ("0.10", "==0.10.0", True),
        ("2.13.4", "~=2.13.0", True),
        ("2.14.0", "~=2.13.0", False),
        ("1.4.7", "==1.4.*", True),
        ("1.5", "!=1.4.*,>=1", True),
        ("0.11.0rc1", ">=0.11", True),
        ("3", "", True),
    ],
)
def test_rules_of_versions(there, rule, fits):
    assert requirements.satisfies(there, rule) is fits


def test_sizes_of_a_model_follow_from_two_layers():
    """As audiocraft's paper names them: 300M, 1.5B and 3.3B parameters of the transformer."""
    small = OFFICIAL_MODELS["facebook/musicgen-small"]
    assert 0.4e9 < sizes.parameters(small.lm) < 0.45e9
    full, half = (sizes.needs(small, dtype) for dtype in ("float32", "bfloat16"))
    assert full.lm == 4 * sizes.parameters(small.lm)
    assert half.lm < 0.51 * full.lm
    assert sizes.needs(small, "float32", batch=2).cache == 2 * full.cache
