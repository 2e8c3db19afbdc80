"""`musicgen-jax cache` and `completion`: only what is ours is removed; a shell finds every word."""

import json
import shutil
import subprocess

import pytest

from musicgen_jax.commands import cli
from musicgen_jax.runtime import program_store


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Two programs, one of them damaged, two models, and files of somebody else's."""
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path))
    monkeypatch.setenv("MUSICGEN_JAX_CACHE", str(tmp_path / "compiled"))
    (tmp_path / "compiled").mkdir()
    store = program_store.ProgramStore(tmp_path / "compiled", -1)
    store.put("jit_a-0", b"whole")
    store.put("jit_b-1", b"damaged")
    (tmp_path / "compiled/jit_b-1-cache").write_bytes(b"x")
    (tmp_path / "compiled/letter.txt").write_text("mine")
    for name in ("facebook--musicgen-small", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    return tmp_path


def names(folder) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_list(home, capsys):
    assert cli.main(["cache", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["programs"]["count"] == 2
    assert [model["name"] for model in found["models"]] == [
        "facebook--musicgen-small", "link", "other"
    ]  # fmt: skip
    assert cli.main(["cache", "list"]) == 0
    assert f"model other: 2 bytes, {home / 'other'}" in capsys.readouterr().out


def test_clean_damaged_then_all(home, capsys):
    assert cli.main(["cache", "clean", "--damaged"]) == 0
    assert names(home / "compiled") == {"jit_a-0-cache", "letter.txt"}
    assert cli.main(["cache", "clean"]) == 0
    assert names(home / "compiled") == {"letter.txt"}
    assert "removed 1 compiled programs: 37 bytes" in capsys.readouterr().out
    assert {"other", "photos", "facebook--musicgen-small"} < names(home)


def test_clean_a_model_or_a_link_to_one(home, capsys):
    assert cli.main(["cache", "clean", "--model", "link", "--model", "other"]) == 0
    assert names(home) == {"compiled", "photos", "facebook--musicgen-small"}
    assert len(names(home / "compiled")) == 3


@pytest.mark.parametrize("name", ["photos", "..", "other/../photos", "", "/"])
def test_what_is_not_a_model_stays(home, capsys, name):
    before = names(home)
    assert cli.main(["cache", "clean", "--model", name]) == 2
    assert "there are: facebook--musicgen-small, link, other" in capsys.readouterr().err
    assert names(home) == before


def complete(script, *words) -> set[str]:
    """What bash offers after these words."""
    line = " ".join(f"'{word}'" for word in words)
    code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}\n_musicgen_jax\n"
    code += 'printf "%s\\n" "${COMPREPLY[@]}"'
    result = subprocess.run(
        ["bash", "--norc", "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes(capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert set(cli._commands()) <= complete(script, "musicgen-jax", "")
    assert complete(script, "musicgen-jax", "ge") == {"generate"}
    assert "--dtype" in complete(script, "musicgen-jax", "generate", "--d")
    assert complete(script, "musicgen-jax", "bench", "--dtype", "b") == {"bfloat16"}
    assert complete(script, "musicgen-jax", "cache", "") >= {"list", "clean"}
    assert complete(script, "musicgen-jax", "cache", "clean", "--d") == {"--damaged"}
    assert complete(script, "musicgen-jax", "generate", "a wal") == set()  # a prompt


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_every_command_and_option(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert set(cli._commands()) <= set(script.replace('"', " ").split())
    assert "damaged" in script
