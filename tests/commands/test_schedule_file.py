"""`generate --schedule FILE` and `--negative`."""

import pytest

from musicgen_jax import testing
from musicgen_jax.audio import clip_settings
from musicgen_jax.commands import schedule_file
from musicgen_jax.commands.cli import main
from musicgen_jax.errors import UserError
from musicgen_jax.generation.schedule import Cue
from tests.helpers import shallow


def test_a_clip_carries_its_schedule(tmp_path):
    testing.save_random_model(tmp_path / "model", shallow.TEXT)
    text, out = tmp_path / "cues.txt", tmp_path / "out.wav"
    text.write_text("# a piece\n0 calm piano\n\n0.3\tdrums  enter\n")
    options = ["--model", str(tmp_path / "model"), "--duration", "0.5", "-q", "-o", str(out)]
    assert main(["generate", "--schedule", str(text), "--negative", "noise", *options]) == 0
    settings = clip_settings.read(out)
    assert settings is not None
    assert settings["schedule"] == [
        {"seconds": 0.0, "prompt": "calm piano"},
        {"seconds": 0.3, "prompt": "drums  enter"},
    ]
    assert settings["negative_prompt"] == "noise"
    text.write_text("9 late")
    assert main(["generate", "--schedule", str(text), *options]) == 2


def test_lines_of_json(tmp_path):
    file = tmp_path / "cues.jsonl"
    file.write_text('[0, "a"]\n{"seconds": 2, "cfg_coef": 2, "negative_prompt": "b"}\n')
    assert schedule_file.read(file) == (
        Cue(0, "a"),
        Cue(2, negative_description="b", cfg_coef=2),
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "drums", "line 1: must be SECONDS and a description"),
        ("a.txt", "1 a\n2", "line 2: must be SECONDS and a description"),
        ("a.txt", "nan a", "line 1: the seconds of a cue must be a number from 0"),
        ("a.txt", "\n# nothing\n", "holds no cues"),
        ("a.txt", "2 a\n1 b", "in order"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.jsonl", '{"prompt": "a"}', "line 1: a cue must say its seconds"),
        ("a.jsonl", '{"seconds": 1}', "line 1: a cue must change something"),
        ("a.jsonl", '{"seconds": 1, "tempo": 3}', "line 1: a cue has no field 'tempo'"),
        ("a.jsonl", '{"seconds": 1, "prompt": "a", "description": "b"}', "under two names"),
        ("a.jsonl", '{"seconds": 1, "temperature": "a"}', "temperature must be"),
        ("a.jsonl", "3", "line 1: a cue must be"),
    ],
)
def test_files_that_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        schedule_file.read(tmp_path / name)
    (tmp_path / name).write_bytes(b"1 \xff")
    with pytest.raises(UserError, match="is not UTF-8"):
        schedule_file.read(tmp_path / name)
