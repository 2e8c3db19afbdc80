"""`musicgen-jax train codec`: a codec from audio, or a better decoder for an existing codec."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_jax import console
from musicgen_jax.commands import options, train_options
from musicgen_jax.errors import UserError

if TYPE_CHECKING:
    from musicgen_jax.training.codec_settings import CodecRunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to a parser."""
    add = parser.add_argument
    add(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="a TOML file of settings, or a preset: debug, nano, nano-decoder, "
        "encodec_base_24khz, encodec_musicgen_32khz; with --resume it may be left out",
    )
    add("--run", dest="folder", required=True, metavar="DIR", help="folder of the run")
    add("--data", metavar="AUDIO", help="folder or manifest of audio")
    add("--valid", metavar="AUDIO", help="audio to validate on")
    add("--base", metavar="CODEC", help="a codec or model to start from, instead of new weights")
    add("--steps", type=int, metavar="N", help="total steps (default: as CONFIG says)")
    options.add_devices(parser)
    add("--resume", action="store_true", help="resume from the last checkpoint of DIR")
    add(
        "--data-changed",
        action="store_true",
        help="resume even if the data differs from what the run started with",
    )
    train_options.add_tensorboard(parser)
    console.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Trains, or resumes training, and writes the codec."""
    from musicgen_jax.runtime import compile_cache
    from musicgen_jax.training import codec_run
    from musicgen_jax.training.data.clips import AudioClips

    config = _settings(args)
    compile_cache.enable()
    base = None
    if config.base:
        base, architecture = codec_run.find_base(config.base)
        config = dataclasses.replace(config, codec=architecture)
    if not config.data:
        raise UserError("there is no audio to train on: give --data AUDIO, a folder or a manifest")
    form = config.codec.sample_rate, config.codec.channels
    clips = AudioClips.open(config.data, *form)
    valid = AudioClips.open(config.valid, *form) if config.valid else None
    out = console.Console.of(args)
    made = codec_run.train(
        Path(args.folder),
        config,
        clips,
        valid=valid,
        base=base,
        resume=args.resume,
        data_changed=args.data_changed,
        say=out.say,
        bar=out.bar,
    )
    out.made(f"wrote {made}", folder=str(made))


def _settings(args: argparse.Namespace) -> "CodecRunConfig":
    """What the file or preset says, and what the command line says instead."""
    from musicgen_jax.training.codec_settings import PRESETS, CodecRunConfig, with_steps

    config = train_options.run_config(args, CodecRunConfig, PRESETS)
    if args.devices is not None:
        data, parts = args.devices
        if parts > 1:
            raise UserError(
                f"a codec's weights are not split over devices, only its batch: "
                f"give --devices {data * parts}"
            )
        config = dataclasses.replace(config, devices=data)
    try:
        if args.steps is None:
            return config
        return dataclasses.replace(config, training=with_steps(config.training, args.steps))
    except ValueError as error:
        raise UserError(str(error)) from None
