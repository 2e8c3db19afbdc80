"""From a name to a folder: one process makes it, whoever asks at the same time."""

import pwd
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from musicgen_jax.errors import UserError
from musicgen_jax.runtime import compile_cache, user_folders
from musicgen_jax.storage import hub


@pytest.fixture
def no_home(monkeypatch):
    """A container's user that the system does not know."""

    def unknown(_):
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "MUSICGEN_JAX_HOME", compile_cache.VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_of_two_that_need_a_model_one_converts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path / "home"))
    made = []

    def convert(name, folder):
        made.append(name)
        time.sleep(0.2)
        folder.mkdir()

    monkeypatch.setattr(hub, "_convert", convert)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(hub.find_model, ["small", "facebook/musicgen-small"]))
    assert found == [tmp_path / "home" / "facebook--musicgen-small"] * 2
    assert made == ["facebook/musicgen-small"]
    assert [entry.name for entry in (tmp_path / "home").iterdir()] == [found[0].name]


def test_a_conversion_that_fails_is_tried_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path))

    def fail(name, folder):
        raise UserError("no network")

    monkeypatch.setattr(hub, "_convert", fail)
    for _ in range(2):
        with pytest.raises(UserError, match="no network"):
            hub.find_model("small")
    assert not hub.is_converted("facebook--musicgen-small")


def test_without_a_home_there_is_no_cache_and_the_bundled_model(no_home, tmp_path):
    assert user_folders.user_cache() is None
    assert compile_cache.folder() is None
    assert hub.find_model("nano").is_dir()
    assert hub.find_model(tmp_path) == tmp_path
    assert not hub.is_converted("htdemucs")
    with pytest.raises(UserError, match="set MUSICGEN_JAX_HOME"):
        hub.find_model("small")


def test_a_home_that_nobody_has_is_one_line(no_home):
    with pytest.raises(UserError, match="no model '~nobody-here/x'"):
        hub.find_model("~nobody-here/x")
