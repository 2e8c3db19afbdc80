"""`musicgen-jax train lm`: a language model from codes."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_jax import console
from musicgen_jax.commands import hosts, options, train_options
from musicgen_jax.errors import UserError

if TYPE_CHECKING:
    from musicgen_jax.config import MusicGenConfig
    from musicgen_jax.training.lm_settings import LMRunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to a parser."""
    add = parser.add_argument
    add(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="a TOML file of settings, or a preset: debug, debug-melody, nano, small, medium, "
        "large; with --resume it may be left out",
    )
    add("--run", dest="folder", required=True, metavar="DIR", help="folder of the run")
    add("--data", metavar="CODES", help="folder of codes, from `train encode`")
    add("--valid", metavar="CODES", help="codes to validate on")
    add("--base", metavar="MODEL", help="whose codec and text encoder are used")
    add("--steps", type=int, metavar="N", help="total steps (default: as CONFIG says)")
    add("--resume", action="store_true", help="resume from the last checkpoint of DIR")
    add(
        "--data-changed",
        action="store_true",
        help="resume even if the data differs from what the run started with",
    )
    options.add_devices(parser)
    add(
        "--fsdp",
        action=argparse.BooleanOptionalAction,
        help="split weights and optimizer over all devices",
    )
    train_options.add_tensorboard(parser)
    console.add_arguments(parser)
    hosts.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Trains, or resumes training, and writes the model."""
    hosts.start(args)  # before anything else asks for devices

    from musicgen_jax.runtime import compile_cache
    from musicgen_jax.storage import checkpoint, hub
    from musicgen_jax.storage.tokenizer import Tokenizer
    from musicgen_jax.training.batches import fixed_length
    from musicgen_jax.training.lm_run import train
    from musicgen_jax.training.lm_settings import model_config

    config = _settings(args)
    if not config.data:
        raise UserError("there is no data to train on: give --data CODES, from `train encode`")
    folder = Path(args.folder)
    compile_cache.enable()
    base = hub.find_model(config.base)
    model = model_config(config, checkpoint.load_config(base))
    examples = _open(config.data, model, config.base)
    valid = _open(config.valid, model, config.base) if config.valid else None
    tokenize = fixed_length(Tokenizer(base / checkpoint.TOKENIZER), config.text_length)
    import jax

    first = jax.process_index() == 0
    out = console.Console.of(args) if first else console.Console(quiet=True)
    made = train(
        folder,
        config,
        model,
        base,
        examples,
        tokenize,
        valid=valid,
        resume=args.resume,
        data_changed=args.data_changed,
        say=out.say,
        bar=out.bar,
    )
    out.made(f"wrote {made}", folder=str(made))


def _settings(args: argparse.Namespace) -> "LMRunConfig":
    """What the file or preset says, and what the command line says instead."""
    from musicgen_jax.training.lm_settings import PRESETS, LMRunConfig, with_steps

    config = train_options.run_config(args, LMRunConfig, PRESETS)
    if args.steps is not None:
        config = with_steps(config, args.steps)
    mesh = config.mesh
    if args.devices is not None:
        data, parts = args.devices
        mesh = dataclasses.replace(mesh, data=data, model=parts)
    if args.fsdp is not None:
        mesh = dataclasses.replace(mesh, fsdp=args.fsdp)
    return dataclasses.replace(config, mesh=mesh)


def _open(folder: str, model: "MusicGenConfig", base: str) -> Any:
    """The codes in a folder, if the model's codec made them."""
    from musicgen_jax.training.data.shards import CodeShards

    shards = CodeShards.open(folder)
    if model.lm.chroma_bins:
        shards.require_chroma(model.lm, base)
    ours = model.lm.n_q, model.lm.card
    if (shards.codebooks, shards.card) != ours:
        raise UserError(
            f"{folder} holds {shards.codebooks} codebooks of {shards.card} codes, the codec of "
            f"{base} has {ours[0]} of {ours[1]}: encode the music with it, or choose its --base"
        )
    return shards
