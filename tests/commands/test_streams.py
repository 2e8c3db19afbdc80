"""Standard streams that are missing, closed or not able to print every name."""

import io
import subprocess
import sys

import pytest

from musicgen_jax.commands.cli import main
from musicgen_jax.commands.streams import tolerant_streams


class Closed(io.StringIO):
    """A pipe whose reader leaves after one line."""

    def write(self, text: str) -> int:
        if "\n" in self.getvalue():
            raise BrokenPipeError
        return super().write(text)

    def flush(self) -> None:
        if "\n" in self.getvalue():
            raise BrokenPipeError


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_work_continues_without_a_reader(monkeypatch, name):
    stream = Closed()
    monkeypatch.setattr(sys, name, stream)
    done = []
    with tolerant_streams():
        for i in range(5):
            print(i, file=getattr(sys, name), flush=True)
            done.append(i)
    assert done == [0, 1, 2, 3, 4]
    assert stream.getvalue() == "0\n"
    assert getattr(sys, name) is stream


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_work_continues_without_a_stream(monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    with tolerant_streams():
        print("a line", file=getattr(sys, name), flush=True)
        assert not getattr(sys, name).isatty()
    assert getattr(sys, name) is None


def test_errors_still_give_exit_code_2_without_a_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["generate"]) == 2


def test_a_real_pipe_that_is_closed_leaves_no_traceback():
    code = """
import sys
from musicgen_jax.commands.streams import tolerant_streams
with tolerant_streams():
    for i in range(20_000):
        print(i, flush=True)
print("done", file=sys.stderr)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), said) == (0, "done\n")


def test_a_prompt_that_looks_like_an_option_is_told_where_to_stand(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--jig"])
    assert stopped.value.code == 2
    assert "a PROMPT that begins with - comes after --" in capsys.readouterr().err


def test_a_command_without_prompts_says_nothing_of_prompts(capsys):
    with pytest.raises(SystemExit):
        main(["models", "--jsno"])
    told = capsys.readouterr().err
    assert told.startswith("musicgen-jax models: error: unrecognized arguments: --jsno")
    assert "PROMPT" not in told
