"""The cache of compiled programs: on for users, never against their will, never in the way."""

import os
import subprocess
import sys

import jax
import pytest

from musicgen_jax import Codec, MusicGen
from musicgen_jax.runtime import compile_cache
from musicgen_jax.runtime.program_store import ProgramStore
from musicgen_jax.storage import hub

OPTIONS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def options(nothing_cached):
    """JAX's options as they were, after each test. Nothing compiles in between."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    yield before
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("MUSICGEN_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "musicgen-jax" / "compiled"


def test_off_while_tests_run(options):
    assert os.environ["MUSICGEN_JAX_CACHE"] == "off"
    assert compile_cache.enable() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_on_by_default_bounded_and_private(home):
    assert compile_cache.enable() == home
    assert jax.config.jax_compilation_cache_dir == str(home)
    assert jax.config.jax_compilation_cache_max_size == compile_cache.MAX_BYTES
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    assert home.stat().st_mode & 0o077 == 0
    assert home.parent == hub.user_cache()
    assert compile_cache.enable() == home, "a second model"


def test_loading_a_model_changes_nothing_for_the_process(home):
    before = dict(jax.config.values)
    MusicGen.from_pretrained("nano")
    Codec.from_pretrained("nano")
    assert dict(jax.config.values) == before
    assert not home.exists()


@pytest.mark.parametrize("word", ["off", "OFF", "0", "none", "false", "no"])
def test_switched_off(home, monkeypatch, word):
    monkeypatch.setenv("MUSICGEN_JAX_CACHE", word)
    assert compile_cache.enable() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert not home.exists()


def test_a_folder_of_the_users_choice(home, monkeypatch, tmp_path):
    monkeypatch.setenv("MUSICGEN_JAX_CACHE", str(tmp_path / "mine"))
    assert compile_cache.enable() == tmp_path / "mine"
    assert not home.exists()


def test_what_the_user_told_jax_stands(home, options, monkeypatch, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    assert compile_cache.enable() == tmp_path / "theirs"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
    assert jax.config.jax_compilation_cache_max_size == options["jax_compilation_cache_max_size"]

    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert compile_cache.enable() is None
    assert jax.config.jax_compilation_cache_dir is None

    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_max_size", 12345)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    assert compile_cache.enable() == home
    assert jax.config.jax_compilation_cache_max_size == 12345
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7


def test_a_folder_that_cannot_be_made_or_is_anothers(home, monkeypatch, tmp_path, capfd):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("MUSICGEN_JAX_CACHE", str(file / "below"))
    assert compile_cache.enable() is None

    assert capfd.readouterr() == ("", "")

    monkeypatch.delenv("MUSICGEN_JAX_CACHE")
    home.mkdir(parents=True)
    monkeypatch.setattr(os, "getuid", lambda: home.stat().st_uid + 1)
    assert compile_cache.enable() is None
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(home, capfd, mode):
    home.mkdir(parents=True)
    home.chmod(mode)
    assert compile_cache.enable() is None
    (line,) = capfd.readouterr().err.splitlines()
    assert f"others can write to {home}" in line


def test_a_folder_above_that_others_can_write_to(home, capfd):
    home.mkdir(parents=True)
    home.parent.parent.chmod(0o777)
    assert compile_cache.enable() is None
    assert f"others can write to {home.parent.parent};" in capfd.readouterr().err
    home.parent.parent.chmod(0o1777)  # like /tmp
    assert compile_cache.enable() == home


_TWICE = """
import warnings
import jax, jax.numpy as jnp
warnings.simplefilter("error")
before = jax.jit(lambda x: x + 1)(jnp.ones(3))  # jax is in use already
from musicgen_jax.runtime import compile_cache
folder = compile_cache.enable()
with compile_cache.counting() as counts:
    jax.jit(lambda x: jnp.sin(x) * 2)(before)
print(counts.compiled, counts.loaded, jax.__version__)
"""


def test_jax_uses_it_and_tells_devices_apart(home, tmp_path):
    def run(flags=""):
        environment = os.environ | {
            "MUSICGEN_JAX_CACHE": str(home),
            "XLA_FLAGS": flags,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-c", _TWICE]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return [int(word) for word in result.stdout.split()[:2]]

    assert run() == [1, 0]
    assert run() == [0, 1]
    # As a machine without newer instructions would: it must not get what the others compiled.
    assert run("--xla_cpu_max_isa=SSE4_2") == [1, 0]


_SIX = """
import warnings
import jax, jax.numpy as jnp
warnings.simplefilter("error")
from musicgen_jax.runtime import compile_cache
one = jax.jit(lambda x: x + 1)(jnp.ones(3))
compile_cache.enable()
with compile_cache.counting() as counts:
    for i, function in enumerate((jnp.sin, jnp.cos, jnp.tan, jnp.exp, jnp.tanh, jnp.cosh)):
        def program(x):
            return function(x) * 2
        program.__name__ = f"program{i}"
        jax.jit(program)(one)
print(counts.compiled, counts.loaded)
"""


def test_damaged_entries_are_compiled_again_and_replaced(home):
    def run():
        environment = os.environ | {
            "MUSICGEN_JAX_CACHE": str(home),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-c", _SIX]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
        return [int(word) for word in result.stdout.split()]

    assert run() == [6, 0]
    entries = [next(home.glob(f"jit_program{i}-*-cache")) for i in range(6)]
    cut, altered, grown, empty, link, strange = entries
    content = altered.read_bytes()
    middle = len(content) // 2
    altered.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    cut.write_bytes(cut.read_bytes()[:middle])
    grown.write_bytes(grown.read_bytes() + b"x")
    empty.write_bytes(b"")
    link.rename(home / "program")
    link.symlink_to(home / "program")
    if os.getuid() == 0:
        os.chown(strange, 12345, 12345)
    else:
        strange.write_bytes(content)  # a whole entry, under another key
    assert run() == [6, 0]
    assert run() == [0, 6]


def test_the_least_recently_used_programs_go_first(tmp_path):
    store = ProgramStore(tmp_path, max_bytes=4000)
    for i, key in enumerate("abc"):
        store.put(key, bytes(1000))
        os.utime(tmp_path / f"{key}-cache", (i, i))
    assert store.get("a") == bytes(1000)  # now b is the oldest
    store.put("d", bytes(1000))
    assert [store.get(key) is not None for key in "abcd"] == [True, False, True, True]
    (tmp_path / "e-cache").mkdir()  # in the way
    store.put("e", b"x")
    assert store.get("e") is None


def test_without_jaxs_function_its_own_store_is_used(home, monkeypatch):
    monkeypatch.delattr("jax._src.compilation_cache.get_file_cache")
    assert compile_cache.enable() == home


def test_entries_of_jaxs_own_store_make_room(tmp_path):
    for name in ("a-cache", "a-atime", "b-cache"):
        (tmp_path / name).write_bytes(bytes(8))
    ProgramStore(tmp_path, max_bytes=4000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["b-cache"]


def test_compiling_is_announced_once_and_loading_is_not(home, monkeypatch):
    monkeypatch.setattr(compile_cache, "_NOTICEABLE", 0.0)
    compile_cache.enable()

    def run() -> int:
        told = []
        with compile_cache.announcing(lambda: told.append(1)):
            for add in (1, 2):
                jax.jit(lambda x, add=add: x * 7 + add)(jax.numpy.ones(5)).block_until_ready()
        return len(told)

    jax.clear_caches()
    assert run() == 1
    jax.clear_caches()
    assert run() == 0
