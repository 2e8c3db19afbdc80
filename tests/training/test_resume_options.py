"""Options of the training commands: each is used or refused when a run is resumed, 0 and "" too."""

import argparse
import dataclasses

import pytest

from musicgen_jax.commands import finetune as finetune_command
from musicgen_jax.commands import train_codec, train_lm
from musicgen_jax.config import toml
from musicgen_jax.errors import UserError
from musicgen_jax.nn.lora import LoraConfig
from musicgen_jax.training import codec_settings, finetune, lm_settings
from musicgen_jax.training.layout import MeshConfig


def parser_of(command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser


@pytest.fixture
def run(tmp_path):
    """The settings of a run of fine-tuning that trains an adapter."""
    config = finetune.make_config("nano", "music", codes="codes", lora=2, steps=40)
    (tmp_path / "config.toml").write_text(toml.dump(config))
    return tmp_path, config


CHANGED = {
    "steps": (80, lambda c: c.train.steps),
    "accumulate": (2, lambda c: c.train.accumulate),
    "remat": (True, lambda c: c.train.remat),
    "mesh": (MeshConfig(2, 2), lambda c: c.mesh),
    "save_every": (7, lambda c: c.save_every),
    "log_every": (3, lambda c: c.log_every),
}
REFUSED = {
    "model": "other", "data": "", "codes": "", "lora": 16, "alpha": 0.0, "target": "linear1",
    "batch_size": 2, "seconds": 0.5, "learning_rate": 0.0, "dtype": "bfloat16", "seed": 1,
}  # fmt: skip


def test_finetune_uses_or_refuses_every_option(run):
    folder, config = run
    options = {action.dest for action in parser_of(finetune_command)._actions}
    own = {"help", "folder", "resume", "data_changed", "devices", "quiet", "json"}
    options = options - own | {"mesh"}
    assert options == {*CHANGED, *REFUSED}
    assert finetune.resumed_config(folder, dict.fromkeys(options)) == config
    for name, (value, of) in CHANGED.items():
        assert of(finetune.resumed_config(folder, {name: value})) == value
    for name, value in REFUSED.items():
        with pytest.raises(UserError, match=f"began with {name} .*start a new run"):
            finetune.resumed_config(folder, {name: value})


def test_what_a_run_began_with_may_be_said_again(run):
    folder, config = run
    same = {
        "model": "nano", "data": "music", "codes": "codes", "lora": 2, "alpha": 4.0,
        "target": LoraConfig.target, "batch_size": 8, "learning_rate": 2e-4, "dtype": "float32",
        "seed": 0, "steps": 40,
    }  # fmt: skip
    assert finetune.resumed_config(folder, same) == config


def test_a_learning_rate_of_zero_is_not_the_default():
    with pytest.raises(UserError, match="learning_rate and eps must be positive, got 0"):
        finetune.make_config("nano", "music", codes="codes", learning_rate=0.0)


RUNS = {
    "lm": (train_lm, lm_settings.PRESETS["debug"]),
    "codec": (train_codec, codec_settings.PRESETS["debug"]),
}


@pytest.mark.parametrize("kind", RUNS)
def test_train_uses_or_refuses_every_option(kind, tmp_path):
    command, config = RUNS[kind]
    config = dataclasses.replace(config, data="a", valid="b", tensorboard=True)
    (tmp_path / "config.toml").write_text(toml.dump(config))

    def settings(*options):
        arguments = ["--run", str(tmp_path), "--resume", *options]
        return command._settings(parser_of(command).parse_args(arguments))

    assert settings() == config
    assert settings("--valid", "").valid == ""
    assert settings("--data", "c").data == "c"
    assert not settings("--no-tensorboard").tensorboard
    assert settings("--steps", "7").training.steps == 7
    assert settings("--base", config.base) == config
    with pytest.raises(
        UserError, match=r"began with base .* not 'other': leave --base or CONFIG out"
    ):
        settings("--base", "other")
    with pytest.raises(UserError, match="steps must be at least 1"):
        settings("--steps", "0")


def test_devices_mean_the_same_in_every_command():
    for command in (train_lm, train_codec, finetune_command):
        parse = parser_of(command).parse_args
        assert parse(["--run", "x", "--devices", "8"]).devices == (8, 1)
        assert parse(["--run", "x", "--devices", "4x2"]).devices == (4, 2)
    arguments = ["debug", "--run", "x", "--devices", "4x2"]
    with pytest.raises(UserError, match="only its batch: give --devices 8"):
        train_codec._settings(parser_of(train_codec).parse_args(arguments))
    arguments = parser_of(train_lm).parse_args(["debug", "--run", "x", "--no-fsdp"])
    assert train_lm._settings(arguments).mesh == MeshConfig()
