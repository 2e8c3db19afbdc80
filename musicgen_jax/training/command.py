"""`musicgen-jax train`: its commands, each in a file of its own that parses without jax."""

import argparse
import importlib
import importlib.util

# Command: its module, with add_arguments(parser) and run(args) -> int, and what it does.
COMMANDS = {
    "encode": ("encode_command", "music to codes, once, for all training that follows"),
    "lm": ("lm_command", "train a language model on codes"),
    "codec": ("codec_command", "train a codec on audio"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the commands to the parser of `train`."""
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for name, (file, what) in COMMANDS.items():
        path = f"musicgen_jax.training.{file}"
        if importlib.util.find_spec(path) is None:
            continue
        module = importlib.import_module(path)
        description = f"{what[0].upper()}{what[1:]}."
        command = commands.add_parser(name, help=what, description=description)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
