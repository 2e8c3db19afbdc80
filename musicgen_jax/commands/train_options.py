"""What `train lm` and `train codec` share."""

import argparse
import dataclasses
from typing import Any

from musicgen_jax.errors import UserError


def add_tensorboard(parser: argparse.ArgumentParser) -> None:
    """Adds `--tensorboard`."""
    parser.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help="also write DIR/tensorboard (default: as CONFIG says)",
    )


def run_config(args: argparse.Namespace, config: type[Any], presets: dict[str, Any]) -> Any:
    """Settings of a training run: a preset, a file or the run's own, changed by the command line.

    Raises:
      UserError: there are no settings, they do not fit, or a resumed run is given another base.
    """
    from musicgen_jax.config import toml
    from musicgen_jax.training.run import check_base, saved_config

    saved = saved_config(args.folder, config) if args.resume else None
    if args.config is None and saved is None:
        raise UserError(f"give a CONFIG: a TOML file or one of {', '.join(presets)}")
    made: Any = saved
    if args.config is not None:
        made = presets.get(args.config) or toml.read(args.config, config)
    names = ("data", "valid", "base", "tensorboard")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        made = dataclasses.replace(made, **given)
    except ValueError as error:
        raise UserError(str(error)) from None
    if saved is not None:
        check_base(args.folder, saved.base, made.base)
    return made
