"""What a command says and returns when it is interrupted, terminated or fails."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from musicgen_jax.commands import cli, endings
from musicgen_jax.errors import UserError, one_line
from tests.helpers.faults import raising
from tests.helpers.paths import ROOT


def child(code, *, cwd, **environment):
    """A process that runs `code`, with `ended` at hand and Ctrl-C switched on."""
    start = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from musicgen_jax.commands.endings import ended\n"
    )
    return subprocess.run(
        [sys.executable, "-c", start + code],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env={**os.environ, **environment},
    )


def test_what_the_user_can_mend_is_one_line_and_code_2(capsys):
    assert endings.ended(raising(UserError("first\n  second"))) == 2
    assert capsys.readouterr().err == "musicgen-jax: error: first second\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "a.wav"), "a.wav: No space left on device"),
        (PermissionError(13, "Permission denied", b"b\xff"), "Permission denied"),
        (MemoryError(), "out of memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), "out of memory"),
    ],
)
def test_a_fault_of_the_machine_is_one_line_and_code_2(error, words, capsys):
    assert endings.ended(raising(error)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_fault_of_ours_is_one_line_with_a_file_to_send(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert endings.ended(raising(KeyError("lost"))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (report,) = tmp_path.iterdir()
    assert "KeyError: 'lost'" in line
    assert str(report) in line
    assert "Traceback" in report.read_text()
    assert "musicgen-jax" in report.read_text()


def test_a_fault_of_ours_without_a_place_for_the_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert endings.ended(raising(KeyError("lost"))) == 1
    assert "--debug" in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(cli, "_run", lambda arguments: raising(KeyError(arguments[0]))())
    with pytest.raises(KeyError, match="generate"):
        cli.main(["generate", "--debug", "x"])


def test_debug_after_two_dashes_is_a_prompt():
    assert endings.debug_flag(["generate", "--", "--debug"]) == (
        False,
        ["generate", "--", "--debug"],
    )
    assert endings.debug_flag(["--debug", "generate", "--", "-x"]) == (
        True,
        ["generate", "--", "-x"],
    )


@pytest.mark.parametrize("hidden", ["\x1b[31m", "\x07", "\x7f", "\x9b", "\u202e"])
def test_control_characters_do_not_reach_the_terminal(hidden, capsys):
    assert cli.main(["generate", "x", "--model", f"./a{hidden}b"]) == 2
    with pytest.raises(SystemExit):
        cli.main(["generate", "x", f"--no{hidden}such"])
    shown = capsys.readouterr().err
    assert hidden not in shown
    assert one_line(f"./a{hidden}b") in shown


# --- Signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_command(name, code, tmp_path):
    done = child(f"sys.exit(ended(lambda: os.kill(os.getpid(), signal.{name})))", cwd=tmp_path)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1


def test_an_import_is_not_interrupted(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor i in range(10**6): pass\n"
        "print('imported whole', flush=True)\n"
    )
    code = "def run():\n  import slow, time\n  time.sleep(60)\nsys.exit(ended(run))"
    done = child(code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (130, "imported whole\n")
    assert done.stderr == "musicgen-jax: interrupted\n"


def test_an_interrupt_that_python_swallows_comes_again(tmp_path):
    code = """
import gc, time
def collected(phase, info):
    gc.callbacks.remove(collected)
    os.kill(os.getpid(), signal.SIGINT)
def run():
    gc.callbacks.append(collected)
    gc.collect()
    time.sleep(60)
sys.exit(ended(run))
"""
    done = child(code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "musicgen-jax: interrupted\n")


def test_an_interrupt_that_a_library_wraps_is_not_taken_for_a_fault(tmp_path):
    code = """
def run():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for i in range(10**6): pass
    except KeyboardInterrupt:
        raise RuntimeError("the model is damaged")
sys.exit(ended(run))
"""
    done = child(code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "musicgen-jax: interrupted\n")


@pytest.mark.parametrize(
    "fails",
    [
        "threading.Thread(target=lambda: 1 / 0).start()",
        "type('Loop', (), {'__del__': lambda self: 1 / 0})()",
        "sys.excepthook(*error)",  # how extension modules show what nobody can catch
    ],
    ids=["thread", "finalizer", "extension"],
)
def test_errors_of_other_threads_are_not_shown_after_an_interrupt(fails, tmp_path):
    code = f"""
import threading
try:
    1 / 0
except ZeroDivisionError:
    error = sys.exc_info()
def run():
    {fails}
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for i in range(10**6): pass
    finally:
        {fails}
        for thread in threading.enumerate():
            if thread is not threading.main_thread(): thread.join()
code = ended(lambda: ended(run), last=True)
{fails}
sys.exit(code)
"""
    done = child(code, cwd=tmp_path)
    assert done.returncode == 130
    assert done.stderr.count("ZeroDivisionError") == 1, "the one before the interrupt"
    assert done.stderr.endswith("\nmusicgen-jax: interrupted\n")


def test_what_ignores_ctrl_c_goes_on_ignoring_it(tmp_path):
    code = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.exit(ended(lambda: os.kill(os.getpid(), signal.SIGINT) or 7))
"""
    assert child(code, cwd=tmp_path).returncode == 7


def test_the_handlers_of_a_caller_come_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    hook = sys.unraisablehook
    assert endings.ended(lambda: 0) == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert sys.unraisablehook is hook


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "RuntimeError('wrapped')", "SystemExit(1)"])
@pytest.mark.parametrize("escapes", [False, True])
def test_whatever_follows_a_signal_ends_as_the_signal_does(tmp_path, error, escapes):
    code = (
        "def run():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        f"        raise {error}\n"
        "code = ended(run, last=True)\n"
        f"if {escapes}: raise RuntimeError('escaped')\n"
        "sys.exit(code)\n"
    )
    done = child(code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "musicgen-jax: interrupted\n")


@pytest.mark.parametrize("module", ["signal", "musicgen_jax.commands"])
def test_a_signal_before_our_handlers_are_there_leaves_no_traceback(tmp_path, module):
    """When the first file of Python is imported, and when the first of ours is."""
    (tmp_path / "sitecustomize.py").write_text(
        "import _signal, os, sys\n"
        "_signal.signal(_signal.SIGINT, _signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), _signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "musicgen_jax", "--version"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def interrupted_after(seconds, output):
    """The exit code and the words of a command that gets Ctrl-C so long after its first import."""
    # The parent may be a job in the background, which ignores Ctrl-C.
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from musicgen_jax.__main__ import main\n"
        "print('begun', flush=True)\n"
        "sys.exit(main())\n"
    )
    command = ["generate", "a waltz", "--duration", "600", "-o", str(output)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, *command], **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    return process.returncode, told


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))  # workers may share them
def test_ctrl_c_at_any_moment(tmp_path, part):
    """From the first imports to the middle of generation. Python's own start is not ours.

    Most of what could go wrong is in the first seconds, so most of the moments are there.
    """
    rng = random.Random(part)
    for i in range(5):
        output = tmp_path / f"{i}.wav"
        code, told = interrupted_after(0.15 * (10 / 0.15) ** rng.random(), output)
        assert (code, told.splitlines()[-1:]) == (130, ["musicgen-jax: interrupted"]), told
        assert "Traceback" not in told
        assert not output.exists()
