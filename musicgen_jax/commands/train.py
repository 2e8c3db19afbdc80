"""`musicgen-jax train`: its commands, each in its own file, which parses arguments without jax."""

import argparse

from musicgen_jax.commands import train_codec, train_encode, train_lm

# Each command's module and what it does.
COMMANDS = {
    "encode": (train_encode, "encode music to codes, once, for all later training"),
    "lm": (train_lm, "train a language model on codes"),
    "codec": (train_codec, "train a codec on audio"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the commands to the parser of `train`."""
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for name, (module, what) in COMMANDS.items():
        description = f"{what[0].upper()}{what[1:]}."
        command = commands.add_parser(name, help=what, description=description)
        command.set_defaults(run=module.run)
        module.add_arguments(command)
