"""Files and folders appear whole or not at all, whoever else writes them at the same time."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_jax import files
from musicgen_jax.errors import UserError, reason, user_error

OLD = time.time() - 3600


def is_ours(folder):
    return (folder / "config").exists()


def write_folder(target, text="new", **options):
    with files.new_folder(target, **options) as folder:
        (folder / "config").write_text(text)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


# --- Copies ------------------------------------------------------------------------------------


def test_a_folder_of_files_is_copied_without_hidden_ones(tmp_path):
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / "a").write_text("1")
    (source / ".DS_Store").write_text("x")
    files.copy_folder(source, tmp_path / "target")
    assert names(tmp_path / "target") == ["d"]
    assert (tmp_path / "target" / "d" / "a").read_text() == "1"


@pytest.mark.parametrize("kind", ["link", "link to a folder", "pipe", "dangling"])
def test_nothing_from_outside_is_copied_in(tmp_path, kind):
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (tmp_path / "secret").write_text("key")
    strange = source / "d" / "x"
    if kind == "pipe":
        os.mkfifo(strange)
    else:
        where = {"link": "secret", "link to a folder": "source", "dangling": "nothing"}[kind]
        strange.symlink_to(tmp_path / where)
    with pytest.raises(UserError, match="x: a link or not a regular file"):
        files.copy_folder(source, tmp_path / "target")


# --- Files -------------------------------------------------------------------------------------


def test_a_file_appears_with_its_folders_and_replaces_an_older_one(tmp_path):
    target = tmp_path / "a" / "b.bin"
    files.write_bytes(target, b"one")
    files.write_bytes(target, memoryview(b"two"))
    assert target.read_bytes() == b"two"
    assert names(target.parent) == ["b.bin"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, OSError(28, "No space left")])
def test_a_write_that_fails_leaves_the_older_file_alone(tmp_path, fault):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def write():
        with files.new_file(target) as file:
            file.write(b"new")
            raise fault

    with pytest.raises(UserError if isinstance(fault, OSError) else fault):
        write()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("name", ["x" * 255, "caf\udce9", "a b\n.wav"])
def test_any_name_that_the_system_takes_can_be_written(tmp_path, name):
    files.write_bytes(tmp_path / name, b"1")
    write_folder(tmp_path / "f" / name)
    assert names(tmp_path) == sorted(["f", name])


@pytest.mark.parametrize("target", ["file/x", "folder", "x" * 256])
def test_what_cannot_be_written_is_one_line(tmp_path, target):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "something").write_text("")
    for write in (lambda path: files.write_bytes(path, b"x"), write_folder):
        with pytest.raises(UserError) as caught:
            write(tmp_path / target)
        assert "\n" not in str(caught.value)
        assert target in str(caught.value)
    assert names(tmp_path) == ["file", "folder"]


# --- Folders -----------------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_full(tmp_path):
    target = tmp_path / "a" / "model"
    with files.new_folder(target) as folder:
        assert folder.parent == target.parent
        (folder / "config").write_text("new")
        assert not target.exists()
    assert names(target.parent) == ["model"]
    assert names(target) == ["config"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, OSError(28, "No space left")])
def test_a_folder_that_is_not_filled_leaves_nothing(tmp_path, fault):
    def write():
        with files.new_folder(tmp_path / "model") as folder:
            (folder / "half").write_text("")
            raise fault

    with pytest.raises(UserError if isinstance(fault, OSError) else fault):
        write()
    assert names(tmp_path) == []


def test_nothing_is_left_while_threads_of_a_failed_writer_still_write(tmp_path):
    """Orbax writes with threads; one of them fails, and the others go on for a moment."""

    def write(folder, until):
        for i in range(1_000_000):
            if time.monotonic() > until or not folder.exists():
                return
            with contextlib.suppress(OSError):
                (folder / f"{i}").touch()

    threads = []

    def fail():
        with files.new_folder(tmp_path / "model") as folder:
            (folder / "state").mkdir()
            arguments = (folder / "state", time.monotonic() + 0.5)
            threads.extend(threading.Thread(target=write, args=arguments) for _ in range(4))
            for thread in threads:
                thread.start()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == []


def test_only_what_may_be_replaced_is_replaced(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    write_folder(target, "one")  # an empty folder is nothing
    with pytest.raises(UserError, match=r"choose another folder$"):
        write_folder(target)
    with pytest.raises(UserError, match=r"or overwrite it$"):
        write_folder(target, ours=is_ours)
    write_folder(target, "two", overwrite=True, ours=is_ours)
    assert (target / "config").read_text() == "two"
    (target / "config").rename(target / "letter")
    with pytest.raises(UserError, match="did not write it"):
        write_folder(target, overwrite=True, ours=is_ours)
    assert names(target) == ["letter"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_writers_at_once_both_leave_a_whole_folder(tmp_path, overwrite):
    """The second looks again before it renames: what it finds there it keeps or replaces."""
    target = tmp_path / "model"

    def write_both():
        with files.new_folder(target, overwrite=overwrite, ours=is_ours) as one:
            (one / "config").write_text("one")
            write_folder(target, "two")  # begins later, ends sooner

    if overwrite:
        write_both()
    else:
        with pytest.raises(UserError, match="exists already"):
            write_both()
    assert (target / "config").read_text() == ("one" if overwrite else "two")
    assert names(tmp_path) == ["model"]


def test_a_replacement_that_fails_keeps_the_older_folder(tmp_path, monkeypatch):
    target = tmp_path / "model"
    write_folder(target, "old")
    rename = os.rename

    def fail_at_the_end(source, target):
        if str(source).endswith(".part"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_at_the_end)
    with pytest.raises(UserError, match=r"cannot write .*: Input/output error"):
        write_folder(target, overwrite=True, ours=is_ours)
    assert (target / "config").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_replacement_that_was_killed_between_its_renames_is_undone(tmp_path):
    target = tmp_path / "model"
    write_folder(target, "old")
    target.rename(files.displaced_name(target))
    with pytest.raises(UserError, match="exists already"):
        write_folder(target)
    assert (target / "config").read_text() == "old"


# --- Leftovers ---------------------------------------------------------------------------------

KILLED = """
import os, sys
from musicgen_jax import files
with files.new_folder(sys.argv[1]) as folder, files.new_file(sys.argv[1] + ".wav") as file:
    file.write(b"half")
    for path in (folder, file.name):
        os.utime(path, (0, {time}))
    print("filling", flush=True)
    sys.stdin.readline()
    os._exit(9)
"""


def test_leftovers_go_once_their_process_is_dead(tmp_path):
    target = tmp_path / "model"
    code = KILLED.format(time=int(OLD))
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    assert writer.stdout.readline() == "filling\n"
    files.remove_abandoned(tmp_path)
    left = names(tmp_path)
    assert len(left) == 2
    assert all(map(files.TEMPORARY.fullmatch, left)), "nothing is taken from a living process"
    writer.communicate("end\n")
    assert names(tmp_path) == left
    for name in left:
        os.utime(tmp_path / name, (0, OLD))
    write_folder(target)
    assert len(names(tmp_path)) == 2, "a folder's leftover goes when the folder is made"
    files.remove_abandoned(tmp_path)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_leftover_that_holds_something_goes_at_once(kind, tmp_path):
    """Its writer had its lock before the first byte, and nobody has it now."""
    left = tmp_path / f".{'0' * 16}.part"
    if kind == "folder":
        left.mkdir()
    (left / "weights" if kind == "folder" else left).write_bytes(b"half")
    files.remove_abandoned(tmp_path)
    assert names(tmp_path) == []


def test_what_is_new_or_has_another_name_is_kept(tmp_path):
    new, other = tmp_path / f".{'0' * 16}.part", tmp_path / ".0123.part"
    for path in (new, other):
        path.write_text("")
    os.utime(other, (0, OLD))
    files.remove_abandoned(tmp_path)
    files.remove_abandoned(tmp_path / "no such folder")
    assert set(names(tmp_path)) == {new.name, other.name}


# --- One process at a time ---------------------------------------------------------------------

LOCKER = """
import sys, time
from pathlib import Path
from musicgen_jax import files
for _ in range(15):
    with files.locked(sys.argv[1]):
        inside = Path(sys.argv[1] + ".inside")
        inside.touch(exist_ok=False)
        time.sleep(0.002)
        inside.unlink()
"""


def test_one_process_at_a_time_is_in_a_locked_block(tmp_path):
    command = [sys.executable, "-c", LOCKER, str(tmp_path / "model")]
    workers = [subprocess.Popen(command) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert names(tmp_path) == []


def test_a_lock_that_another_process_has_is_one_line(tmp_path):
    with files.locked(tmp_path / "a" / "x.wav"):  # noqa: SIM117
        with pytest.raises(UserError, match=r"another process is writing .*x\.wav"):
            with files.locked(tmp_path / "a" / "x.wav", wait=False):
                pass
    with files.locked(tmp_path / "a" / "x.wav", wait=False):
        pass
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot write"),
        files.locked(tmp_path / "file" / "x.wav"),
    ):
        pass


# --- Reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable JSON"),
        (b"{", "not readable JSON"),
        (b"\xff\xfe{}", "not readable JSON"),
        (b"[1]", "must hold an object"),
        (b"[" * 100_000, "not readable JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not readable JSON"),
        (b"{}" + b" " * 5000, "larger than"),
    ],
)
def test_json_that_is_none_is_one_line(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        files.read_json(path, max_bytes=5000 if message == "larger than" else 1 << 20)
    assert "\n" not in str(caught.value)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "a.json") == {"a": 1}


def test_only_regular_files_are_read(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        files.read_bytes(tmp_path / "none", 10)
    with pytest.raises(UserError, match="not a file"):
        files.read_bytes(tmp_path, 10)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match="not a file"):
            files.read_bytes(tmp_path / "pipe", 10)


# --- One line ----------------------------------------------------------------------------------


def test_an_os_error_becomes_a_line_that_names_verb_path_and_reason():
    with pytest.raises(UserError, match=r"^cannot read a\.wav: Permission denied$"):  # noqa: SIM117
        with user_error("read", "a.wav"):
            raise PermissionError(13, "Permission denied", "elsewhere")
    with pytest.raises(ZeroDivisionError), user_error("read", "a.wav"):
        raise ZeroDivisionError


@given(st.text())
def test_a_reason_is_one_short_line(text):
    assert 0 < len(reason(ValueError(f"{text}x"))) <= 200
    assert len(reason(ValueError(text)).splitlines()) <= 1


def test_a_full_disk_is_recognised_in_long_texts():
    text = "RESOURCE_EXHAUSTED: write\n  failed [No space left on device]\n" * 9
    assert reason(RuntimeError(text)) == "No space left on device"
    assert reason(ValueError()) == "ValueError"
