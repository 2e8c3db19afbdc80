"""Many prompts: read strictly, made once, whatever interrupts or shares the work."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.audio import clip_settings
from musicgen_jax.commands import batch_folder
from musicgen_jax.commands.cli import main
from musicgen_jax.errors import UserError
from musicgen_jax.model import MusicGen
from tests.helpers import shallow

TEXTS = ["bells", "a calm waltz", "drums", "a fast irish jig on the flute", "tuba", "harp"]
OPTIONS = ("--duration", "0.3", "--seed", "5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path, shallow.TEXT)
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def arguments(folder, prompts, out, *more):
    return ["batch", str(prompts), str(out), "--model", str(folder), *OPTIONS, *more]


def clips(out) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.wav")}


def manifest(out) -> list[dict]:
    lines = [line for file in out.glob("manifest*") for line in file.read_text().splitlines()]
    return sorted(map(json.loads, lines), key=lambda record: record["index"])


@pytest.fixture(scope="module")
def uninterrupted(folder, prompts, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(arguments(folder, prompts, out, "--batch-size", "2")) == 0
    return out


def test_one_file_and_one_line_for_each_prompt(uninterrupted):
    names = [f"{i:06d}.wav" for i in range(6)]
    assert sorted(p.name for p in uninterrupted.iterdir()) == [
        *names, "manifest.jsonl", "settings.json"
    ]  # fmt: skip
    assert len(set(clips(uninterrupted).values())) == 6
    for record, name, text in zip(manifest(uninterrupted), names, TEXTS, strict=True):
        assert (record["file"], record["prompt"], record["seconds"]) == (name, text, 0.3)


def test_a_clip_is_what_its_seed_gives_alone(folder, uninterrupted, tmp_path):
    """By the same program to the last bit; by the fast one up to rounding."""
    record = manifest(uninterrupted)[3]
    assert record["program"].startswith("slots=4 steps=160 text=64 dtype=float32")
    file = tmp_path / "alone.wav"
    single = ["generate", TEXTS[3], "--model", str(folder), "--duration", "0.3", "-o", str(file)]
    assert main([*single, "--seed", str(record["seed"]), "--slots", "4"]) == 0
    assert file.read_bytes() == (uninterrupted / record["file"]).read_bytes()
    assert main([*single, "--seed", str(record["seed"])]) == 0
    assert_sounds_like(file, uninterrupted / record["file"])


def assert_sounds_like(file, other):
    """Up to the rounding of another program, which ends short clips differently."""
    import soundfile

    (a, _), (b, _) = soundfile.read(file), soundfile.read(other)
    assert len(a) == len(b)
    np.testing.assert_allclose(a[:-400], b[:-400], atol=1e-3)


@pytest.mark.parametrize("size", ["1", "3", "50"])
def test_the_batch_size_changes_no_bit(folder, prompts, uninterrupted, tmp_path, size):
    assert main(arguments(folder, prompts, tmp_path, "--batch-size", size)) == 0
    assert clips(tmp_path) == clips(uninterrupted)


def test_devices_do_not_change_the_music(folder, prompts, uninterrupted, tmp_path):
    assert main(arguments(folder, prompts, tmp_path, "--slots", "4", "--devices", "2x2")) == 0
    assert manifest(tmp_path)[5]["seed"] == manifest(uninterrupted)[5]["seed"]
    for name in clips(uninterrupted):
        assert_sounds_like(tmp_path / name, uninterrupted / name)


def test_finished_clips_are_not_made_again(folder, prompts, uninterrupted, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.iterdir()}
    monkeypatch.setattr(MusicGen, "from_pretrained", None)  # not even loaded
    assert main(arguments(folder, prompts, uninterrupted)) == 0
    assert capsys.readouterr().out == "6 of 6 clips exist already\n"
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.iterdir()} == before


def test_finished_clips_of_another_model_are_not_taken_for_this_ones(
    prompts, uninterrupted, tmp_path, capsys
):
    testing.save_random_model(tmp_path / "other", shallow.TEXT, seed=5)
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.iterdir()}
    assert main(arguments(tmp_path / "other", prompts, uninterrupted)) == 2
    assert "was started with another model: choose another folder" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.iterdir()} == before


def test_finished_clips_of_the_same_weights_in_other_files(
    folder, prompts, uninterrupted, tmp_path
):
    """As when the model was converted again: the weights are compared."""
    shutil.copytree(folder, tmp_path / "again")
    (tmp_path / "again" / "notes.txt").write_text("of mine")
    assert main(arguments(tmp_path / "again", prompts, uninterrupted)) == 0


def test_killed_and_taken_up_again(folder, tmp_path_factory, tmp_path):
    prompts = tmp_path_factory.mktemp("many") / "prompts.txt"
    prompts.write_text("\n".join(TEXTS * 6))
    uninterrupted = tmp_path_factory.mktemp("uninterrupted")
    assert main(arguments(folder, prompts, uninterrupted, "--batch-size", "2")) == 0
    command = arguments(folder, prompts, tmp_path, "--batch-size", "2")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    environment["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # as in this process
    process = subprocess.Popen(
        [sys.executable, "-m", "musicgen_jax", *command], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "000000.wav").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.0005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = clips(tmp_path)
    assert 1 <= len(done) < 36
    # As bad as it gets: half a line, half a file, a file without a line, one written aside.
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(b'{"index": 1, "fi')
    (tmp_path / "000000.wav").write_bytes(done["000000.wav"][:100])
    (tmp_path / "000035.wav").write_bytes(b"not a clip")
    aside = tmp_path / ".0123456789abcdef.part"
    aside.touch()
    os.utime(aside, (0, 0))
    assert main(command) == 0
    assert clips(tmp_path) == clips(uninterrupted)
    assert not aside.exists()
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    whole = [json.loads(line) for line in lines if not line.endswith('"fi')]
    assert {record["index"] for record in whole} == set(range(36))


def test_workers_share_a_folder(folder, prompts, uninterrupted, tmp_path, capsys):
    """The second of three never comes: a run without --worker does what is left."""
    for worker in ("1/3", "3/3"):
        more = ("--worker", worker)
        assert main(arguments(folder, prompts, tmp_path, *more)) == 0
    assert sorted(clips(tmp_path)) == [f"{i:06d}.wav" for i in (0, 2, 3, 5)]
    assert (tmp_path / "manifest-3-of-3.jsonl").exists()
    assert main(arguments(folder, prompts, tmp_path)) == 0
    assert "4 of 6 clips exist already" in capsys.readouterr().out
    assert clips(tmp_path) == clips(uninterrupted)
    assert [record["index"] for record in manifest(tmp_path)] == list(range(6))


def test_another_job_is_refused(folder, prompts, uninterrupted, tmp_path, capsys):
    assert main(arguments(folder, prompts, uninterrupted, "--top-k", "7")) == 2
    assert "was started with top_k 250, not 7: choose another folder" in capsys.readouterr().err
    assert main(arguments(folder, prompts, uninterrupted, "--slots", "8")) == 2
    assert "was started with slots 4, not 8: choose another folder" in capsys.readouterr().err
    other = tmp_path / "prompts.txt"
    other.write_text("\n".join([*TEXTS[:2], "something else", *TEXTS[3:], "one more"]))
    assert main(arguments(folder, other, uninterrupted)) == 2
    assert "line 3: " in (error := capsys.readouterr().err)
    assert "'drums'" in error
    other.write_text("\n".join([*TEXTS, "one more"]))
    (uninterrupted / "settings.json").rename(tmp_path / "kept.json")
    changed = json.loads((tmp_path / "kept.json").read_text()) | {"model": "another"}
    (uninterrupted / "settings.json").write_text(json.dumps(changed))
    assert main(arguments(folder, other, uninterrupted)) == 2
    assert "was started with another model" in capsys.readouterr().err
    (tmp_path / "kept.json").rename(uninterrupted / "settings.json")


def test_a_refused_option_leaves_nothing(folder, prompts, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(folder, prompts, out, "--top-p", "7")) == 2
    assert "top_p must be" in capsys.readouterr().err
    assert not out.exists()


def test_files_of_somebody_else_are_not_overwritten(folder, prompts, tmp_path, capsys):
    (tmp_path / "000001.wav").write_bytes(b"mine")
    for _ in range(2):
        assert main(arguments(folder, prompts, tmp_path)) == 2
        error = capsys.readouterr().err
        assert "000001.wav was not made here, and would be overwritten: choose another" in error
        assert error.count("\n") == 1
    assert clips(tmp_path) == {"000001.wav": b"mine"}
    assert not list(tmp_path.glob("*.json*"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--worker", "5/4"), "must look like 2/4"),
        (("--devices", "0x2"), "must be a number such as 8, or two such as 4x2, got '0x2'"),
        (("--devices", "3x4"), "3 x 4 devices requested, but jax finds 8"),
        (("--slots", "0"), "must be an integer from 1 to 1024, got '0'"),
        (("--slots", "3", "--devices", "2"), "slots must be a multiple of 2"),
        (("--batch-size", "0"), "--batch-size must be at least 1"),
    ],
)
def test_bad_options(folder, prompts, tmp_path, capsys, option, message):
    try:
        code = main(arguments(folder, prompts, tmp_path / "out", *option))
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


# --- The file of prompts --------------------------------------------------------------------------


def test_both_forms_of_the_file(tmp_path):
    (text := tmp_path / "a.txt").write_bytes("\ufeffbells\r\nwaltz \u2028 é\n\n".encode())
    assert [p.text for p in batch_folder.read_prompts(text, 1)] == ["bells", "waltz \u2028 é"]
    (lines := tmp_path / "a.jsonl").write_text(
        '"bells"\n{"prompt": null, "seed": 7}\n{"prompt": "a"}'
    )
    made = batch_folder.read_prompts(lines, 1)
    assert [(p.index, p.text) for p in made] == [(0, "bells"), (1, None), (2, "a")]
    assert made[1].seed == 7
    assert (
        made[0].seed == batch_folder.read_prompts(text, 1)[0].seed == batch_folder.clip_seed(1, 0)
    )


def test_clips_and_seeds_have_seeds_of_their_own():
    seeds = {batch_folder.clip_seed(seed, i) for seed in range(20) for i in range(20)}
    assert len(seeds) == 400
    assert batch_folder.clip_seed(0, 0) == 2968811710, "it must never change: clips would"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", "must be in a .txt or .jsonl file"),
        ("a.txt", b"\n \n", "holds no prompts"),
        ("a.txt", b"x\n\ny", "line 2: empty"),
        ("a.txt", b"x\n\xff", "line 2: not UTF-8"),
        ("a.txt", b"x\n" + b"y" * 10_001, "line 2: 10001 characters"),
        ("a.jsonl", b'"x"\n{', "line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b'"x"\n7', "line 2: the prompt must be a string or null, got 7"),
        ("a.jsonl", b'{"seed": 1}', "line 1: the field prompt is missing"),
        ("a.jsonl", b'{"prompt": "x", "sed": 1}', "line 1: unknown field 'sed'"),
        ("a.jsonl", b'{"prompt": "x", "seed": -1}', "line 1: the seed must be an integer"),
        ("a.jsonl", b'{"prompt": "x", "duration": 0}', "line 1: the duration must be more than 0"),
        ("a.jsonl", b'{"prompt": "x", "duration": NaN}', "line 1: the duration must be more than"),
        ("a.jsonl", b'{"prompt": "x", "duration": true}', "line 1: the duration must be more than"),
        ("a.jsonl", b'{"prompt": "x", "duration": "8"}', "line 1: the duration must be more than"),
        ("a.jsonl", b'{"prompt": "x", "duration": 86401}', "at most 86400 seconds (a day)"),
        ("a.jsonl", b'"\\ud800"', "line 1: not valid text"),
    ],
)
def test_a_bad_line_is_named_before_any_work(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r".") as caught:
        batch_folder.read_prompts(tmp_path / name, 0)
    assert message in str(caught.value)
    assert main(["batch", str(tmp_path / name), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def pipe(monkeypatch, content: bytes) -> None:
    """Puts bytes on stdin."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_stdin_stands_for_either_file(tmp_path, monkeypatch):
    forms = {"a.txt": b"bells\r\n{waltz}\n\n", "a.jsonl": b'{"prompt": null, "seed": 7}\n"a"\n'}
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        pipe(monkeypatch, content)
        made = batch_folder.read_prompts("-", 1, "hiss")
        assert made == batch_folder.read_prompts(tmp_path / name, 1, "hiss")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "stdin holds no prompts"),
        (b"x\n\ny", "stdin, line 2: empty"),
        (b'{"prompt": "x"}\nbells', "stdin, line 2: not JSON"),
        (b"x\n" * 1_000_001, "stdin holds more than 1000000 prompts: divide it"),
    ],
)
def test_a_bad_line_of_stdin_is_named(tmp_path, capsys, monkeypatch, content, message):
    pipe(monkeypatch, content)
    assert main(["batch", "-", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_stdin_without_an_end_is_refused(monkeypatch):
    pipe(monkeypatch, b"a long line\n" * 10)
    monkeypatch.setattr(batch_folder, "_LARGEST", 100)
    with pytest.raises(UserError, match="stdin holds more than 100 bytes of prompts"):
        batch_folder.read_prompts("-", 1)


def test_clips_of_stdin_are_those_of_the_file(
    folder, prompts, uninterrupted, tmp_path, monkeypatch
):
    pipe(monkeypatch, prompts.read_bytes())
    assert main(arguments(folder, "-", tmp_path)) == 0
    assert clips(tmp_path) == clips(uninterrupted)


def test_negatives_of_lines_and_of_the_call(folder, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "bells", "negative": "noise"}\n{"prompt": "a", "negative": null}\n"b"'
    )
    made = batch_folder.read_prompts(file, 1, "hiss")
    assert [prompt.negative for prompt in made] == ["noise", None, "hiss"]
    file.write_text('{"prompt": "bells", "negative": 3}')
    with pytest.raises(UserError, match="line 1: the negative must be a string or null"):
        batch_folder.read_prompts(file, 1)
    out, options = tmp_path / "out", ["--model", str(folder), "--duration", "0.3", "--quiet"]
    file.write_text('{"prompt": "bells", "negative": "noise"}\n"bells"')
    assert main(["batch", str(file), str(out), *options]) == 0
    assert [line.get("negative") for line in manifest(out)] == ["noise", None]
    settings = clip_settings.read(out / "000000.wav")
    assert settings is not None
    assert settings["negative_prompt"] == "noise"
    single = ["generate", "bells", "--negative", "noise", "-o", str(tmp_path / "one.wav")]
    single += ["--seed", str(settings["seed"]), "--slots", "4", *options]
    assert main(single) == 0
    assert (tmp_path / "one.wav").read_bytes()[-1000:] == (out / "000000.wav").read_bytes()[-1000:]
    file.write_text('{"prompt": "bells", "negative": "hiss"}\n"bells"')
    assert main(["batch", str(file), str(out), *options]) == 2


def test_durations_of_lines_and_of_the_call(folder, tmp_path, capsys):
    """The longest clips come first; each is what `generate` makes of its line alone."""
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    options = ["--model", str(folder), "--duration", "0.3"]
    file.write_text(
        '{"prompt": "bells", "duration": 0.2}\n"harp"\n{"prompt": "tuba", "duration": 0.4}'
    )
    assert main(["batch", str(file), str(out), *options]) == 0
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [2, 1, 0]
    assert [line["seconds"] for line in lines] == [0.4, 0.3, 0.2]
    assert [line.get("duration") for line in lines] == [0.4, None, 0.2]
    settings = clip_settings.read(out / "000002.wav")
    assert settings is not None
    assert settings["duration"] == 0.4
    single = ["generate", "tuba", "-o", str(tmp_path / "one.wav"), "--duration", "0.4"]
    single += ["--model", str(folder), "--seed", str(lines[0]["seed"]), "--slots", "4"]
    assert main(single) == 0
    assert (tmp_path / "one.wav").read_bytes() == (out / "000002.wav").read_bytes()

    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main(["batch", str(file), str(out), *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    file.write_text(file.read_text().replace("0.4", "0.5"))
    capsys.readouterr()
    assert main(["batch", str(file), str(out), *options]) == 2
    error = capsys.readouterr().err
    assert "line 3: " in error
    assert "was made with the duration 0.4, not 0.5: choose another folder" in error


def test_a_line_that_is_too_short_for_the_model_is_named(folder, tmp_path, capsys):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    file.write_text('"bells"\n{"prompt": "tuba", "duration": 0.001}')
    assert main(["batch", str(file), str(out), "--model", str(folder)]) == 2
    assert "line 2: duration must be at least one frame" in capsys.readouterr().err
    assert not list(out.glob("*.wav"))
