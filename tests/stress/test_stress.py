"""Commands survive what happens to processes: SIGKILL, Ctrl-C, a second one at the same time.

The default run leaves these tests out, since they take an hour; `pytest -m fuzz tests/stress`
runs them. MUSICGEN_JAX_STRESS (default: 30) is how often each command is killed, interrupted or
started twice.
"""

import os
import random
import shutil
import signal
import time

import pytest

from tests.stress.jobs import JOBS, prepare, start

pytestmark = pytest.mark.fuzz

MANY = int(os.environ.get("MUSICGEN_JAX_STRESS", "30"))
SEED = os.environ.get("MUSICGEN_JAX_FUZZ_SEED", "0")
IN_A_ROW = 3  # kills before the work may end
jobs = pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    """What a command makes undisturbed, and how many seconds that takes."""
    known = {}

    def of(job):
        if job.name not in known:
            out = tmp_path_factory.mktemp("whole")
            begun = time.monotonic()
            code, said = ended(start(job.words(home, out), stderr=-1))
            assert code == 0, said
            known[job.name] = job.made(out), time.monotonic() - begun
            assert job.made(out)
        return known[job.name]

    return of


def ended(process):
    """The exit code and what was said on stderr."""
    _, said = process.communicate(timeout=600)
    return process.returncode, said


def finish(job, home, out, expected):
    """Takes the job up until it ends: it made what an undisturbed one makes. Clears the folder."""
    code, said = ended(start(job.words(home, out), stderr=-1))
    assert code == 0, said
    assert job.made(out) == expected
    shutil.rmtree(out)


@jobs
def test_killed(job, home, whole, tmp_path, capsys):
    expected, seconds = whole(job)
    rng = random.Random(f"killed {job.name} {SEED}")
    kills = 0
    while kills < MANY:
        out = tmp_path / "out"
        for _ in range(min(IN_A_ROW, MANY - kills)):
            with start(job.words(home, out), stderr=-3) as process:
                # Half of the time in the second half, where there is something to lose.
                time.sleep(seconds * rng.choice((rng.random(), 0.5 + rng.random() / 2)))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                else:
                    break
        finish(job, home, out, expected)
    with capsys.disabled():
        print(f"\n{job.name}: {kills} kills, each result as that of an undisturbed run")


@jobs
def test_two_at_once(job, home, whole, tmp_path, capsys):
    """Both do the work, or one of them is told in one line that the other is at it."""
    expected, seconds = whole(job)
    rng = random.Random(f"pairs {job.name} {SEED}")
    refused = 0
    for _ in range(MANY):
        out = tmp_path / "out"
        first = start(job.words(home, out), stderr=-1)
        time.sleep(rng.choice((0, rng.random() * 0.1, rng.random() * seconds)))
        second = start(job.words(home, out), stderr=-1)
        for code, said in (ended(first), ended(second)):
            assert code in (0, 2), said
            if code == 2:
                refused += 1
                assert said.splitlines()[-1].startswith("musicgen-jax: error: "), said
                assert "Traceback" not in said
        finish(job, home, out, expected)
    with capsys.disabled():
        print(f"\n{job.name}: {MANY} pairs, {refused} refusals, nothing damaged or lost")


# "train lm" is a program of the tests, with imports of its own before it listens to signals.
@pytest.mark.parametrize(
    "job", [job for job in JOBS if job.name != "train lm"], ids=lambda j: j.name
)
def test_interrupted(job, home, whole, tmp_path, capsys):
    """No traceback of ours; nobody can help it if Python itself has not started yet."""
    expected, _ = whole(job)
    rng = random.Random(f"interrupts {job.name} {SEED}")
    codes = {}
    for i in range(MANY):
        number, code = ((signal.SIGINT, 130), (signal.SIGTERM, 143))[i % 4 == 3]
        out = tmp_path / "out"
        process = start(job.words(home, out), stderr=-1)
        time.sleep(10 ** rng.uniform(-1.7, 1))  # 0.02 to 10 s
        process.send_signal(number)
        returned, said = ended(process)
        returned = 128 - returned if returned < 0 else returned  # as a shell says it
        if "Traceback" in said and f"{os.sep}musicgen_jax{os.sep}" not in said:
            returned = "Python was starting"
        else:
            assert returned in (code, 0), said
            assert "Traceback" not in said, said
        codes[returned] = codes.get(returned, 0) + 1
        if i % 10 == 9 or i == MANY - 1:
            finish(job, home, out, expected)
    with capsys.disabled():
        print(f"\n{job.name}: {MANY} signals, exit codes {codes}")
