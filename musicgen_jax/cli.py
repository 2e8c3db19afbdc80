"""The command line. Arguments are parsed before jax is imported: `--help` answers at once."""

import argparse
import sys
from collections.abc import Sequence

from musicgen_jax import (
    __version__,
    batch_command,
    chroma_command,
    codec_command,
    export_command,
    generate_command,
    warmup_command,
)
from musicgen_jax.errors import UserError
from musicgen_jax.training import command as training_command
from musicgen_jax.training import finetune_command

INTERRUPTED = 130  # what a shell reports for Ctrl-C: 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `musicgen-jax`.

    Args:
      argv: arguments, by default the process's own.

    Returns:
      the exit code: 0; 2 if the user can mend it (one line on stderr says how); 130 on Ctrl-C.
    """
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        return args.run(args) or 0
    except UserError as error:
        print(f"musicgen-jax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("musicgen-jax: interrupted", file=sys.stderr)
        return INTERRUPTED


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default of an option that has one, unless its help speaks of it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default == []
        if says_nothing or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"formatter_class": _Help, **kwargs})

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="musicgen-jax", description="Text to music, in JAX.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser(
        "generate",
        help="make music",
        description="Makes one clip per PROMPT, or continues a file, or plays without a prompt.",
    )
    generate_command.add_arguments(generate)

    batch = commands.add_parser(
        "batch",
        help="make music for a file of prompts",
        description="Makes one clip per line of PROMPTS into OUT_DIR. Cut off at any moment, the "
        "same command goes on; clip i depends on its text, the seed and i alone.",
    )
    batch_command.add_arguments(batch)

    chroma = commands.add_parser(
        "chroma",
        help="see what a melody model hears of a file",
        description="Draws which of the twelve pitch classes a melody model hears, moment by "
        "moment, at the beginning of FILE. A shorter file repeats, as it does for the model.",
    )
    chroma_command.add_arguments(chroma)

    convert = commands.add_parser(
        "convert",
        help="convert an official PyTorch checkpoint",
        description="Converts an official PyTorch checkpoint (a folder, a file or a Hub id).",
    )
    from musicgen_jax.convert import add_arguments, run

    add_arguments(convert)
    convert.set_defaults(run=run)

    export_torch = commands.add_parser(
        "export-torch",
        help="a model in the official PyTorch formats",
        description="Writes a model as files that audiocraft or transformers load.",
    )
    from musicgen_jax.convert import to_torch_command

    to_torch_command.add_arguments(export_torch)

    codec = commands.add_parser(
        "codec",
        help="audio to a small file of codes, and back",
        description="Audio to a small file of codes, and back.",
    )
    codec_command.add_arguments(codec)

    warmup = commands.add_parser(
        "warmup",
        help="compile ahead of time what generate will need",
        description="Compiles what `generate` will need and keeps it on disk, so that the first "
        "clip comes as fast as the second.",
    )
    warmup_command.add_arguments(warmup)

    export = commands.add_parser(
        "export",
        help="a model as StableHLO, to run without this package",
        description="Writes a model as programs in StableHLO beside its weights, to be run with "
        "JAX and NumPy alone: the text encoder, the language model's loop and the codec's decoder.",
    )
    export_command.add_arguments(export)

    finetune = commands.add_parser(
        "finetune",
        help="teach a model your own music",
        description="Goes on training a model on your own music: all of its language model, or "
        "with --lora an adapter of a few MB beside it.",
    )
    finetune_command.add_arguments(finetune)
    finetune.set_defaults(run=finetune_command.run)

    train = commands.add_parser(
        "train",
        help="train models of your own",
        description="Trains models: the codec on audio, the language model on the codec's codes.",
    )
    training_command.add_arguments(train)
    return parser
