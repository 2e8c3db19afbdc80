"""`musicgen-jax train codec`: a codec from audio, or a better decoder for one that there is."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

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
    add("--valid", metavar="AUDIO", help="audio that is not trained on, for the figures")
    add("--base", metavar="CODEC", help="a codec or model to begin with, in place of new weights")
    add("--steps", type=int, metavar="N", help="steps in all, in place of what CONFIG says")
    add("--devices", type=int, metavar="N", help="spread the batch over N devices; 0: over all")
    add("--resume", action="store_true", help="go on from the last checkpoint of DIR")
    add(
        "--data-changed",
        action="store_true",
        help="go on even though the data is not what the run began with",
    )
    add("--tensorboard", action="store_true", help="also write DIR/tensorboard")


def run(args: argparse.Namespace) -> int:
    """Trains, or goes on training, and writes the codec."""
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
    made = codec_run.train(
        Path(args.folder),
        config,
        clips,
        valid=valid,
        base=base,
        resume=args.resume,
        data_changed=args.data_changed,
    )
    print(f"wrote {made}")
    return 0


def _settings(args: argparse.Namespace) -> "CodecRunConfig":
    """What the file or preset says, and what the command line says instead."""
    from musicgen_jax.config import toml
    from musicgen_jax.training.codec_settings import PRESETS, CodecRunConfig, with_steps

    source = args.config
    saved = Path(args.folder) / "config.toml"
    if source is None:
        if not args.resume or not saved.exists():
            raise UserError(f"give a CONFIG: a TOML file or one of {', '.join(PRESETS)}")
        source = str(saved)
    config = PRESETS[source] if source in PRESETS else toml.read(source, CodecRunConfig)
    given = {
        name: getattr(args, name)
        for name in ("data", "valid", "base", "devices")
        if getattr(args, name) is not None
    }
    try:
        if args.steps is not None:
            given["training"] = with_steps(config.training, args.steps)
        tensorboard = config.tensorboard or args.tensorboard
        return dataclasses.replace(config, **given, tensorboard=tensorboard)
    except ValueError as error:
        raise UserError(str(error)) from None
