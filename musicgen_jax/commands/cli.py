"""The command line. Arguments are parsed before jax is imported: `--help` answers at once."""

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from musicgen_jax import __version__
from musicgen_jax.commands import (
    batch,
    chroma,
    codec,
    endings,
    evaluate,
    export,
    finetune,
    generate,
    listen,
    serve,
    train,
    warmup,
)
from musicgen_jax.commands.streams import tolerant_streams
from musicgen_jax.convert import command as convert_command
from musicgen_jax.convert import to_torch_command
from musicgen_jax.errors import one_line
from musicgen_jax.runtime import memory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `musicgen-jax`.

    Args:
      argv: arguments, by default the process's own.

    Returns:
      the exit code: 0; 2 if the user can mend it, 1 if it is a fault of ours (one line on stderr
      says how and what); 130 after Ctrl-C; 143 after SIGTERM.
    """
    debug, arguments = endings.debug_flag(sys.argv[1:] if argv is None else argv)
    memory.return_freed_memory()
    with tolerant_streams():
        return endings.ended(lambda: _run(arguments), debug=debug)


def _run(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    return args.run(args) or 0


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default of an option that has one, unless its help already names it."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)

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
        if "unrecognized arguments" in message:
            message += "; a PROMPT that begins with - comes after --"
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="musicgen-jax",
        usage="musicgen-jax COMMAND [OPTION ...]",
        description="Text to music, in JAX.",
        epilog=_overview(),
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(  # `endings.debug_flag` takes it away, wherever it is
        "--debug", action="store_true", help="show the traceback of an error, with any command"
    )
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", prog=parser.prog, help=argparse.SUPPRESS
    )
    for name, (module, _, description) in _commands().items():
        command = commands.add_parser(name, description=description)
        command.set_defaults(run=getattr(module, "run", None))  # nested commands set their own
        module.add_arguments(command)
    return parser


def _commands() -> dict[str, tuple[ModuleType, str, str]]:
    """Each command's module, its line in the overview, and the description in its own help."""
    return {name: entry for group in _GROUPS.values() for name, entry in group.items()}


def _overview() -> str:
    """The commands by group, one line each."""
    lines = []
    for title, group in _GROUPS.items():
        lines.append(f"{title}:")
        lines += [f"  {name:<13} {line}" for name, (_, line, _) in group.items()]
    return "\n".join([*lines, "`musicgen-jax COMMAND --help` lists the options of a command."])


_GROUPS: dict[str, dict[str, tuple[ModuleType, str, str]]] = {
    "make music": {
        "generate": (
            generate,
            "make music from a prompt, a melody, a style or the start of a song",
            "Makes one clip per PROMPT, or continues a file, or plays without a prompt.",
        ),
        "batch": (
            batch,
            "make music for a file of prompts",
            "Makes one clip per line of PROMPTS into OUT_DIR. If it is interrupted, run the same "
            "command again to continue. Clip i depends only on its text, the seed and i.",
        ),
        "serve": (
            serve,
            "make music over HTTP, for many listeners at once",
            "Serves music over HTTP: POST /v1/audio/generate, OpenAI's POST /v1/audio/speech, jobs "
            "for long pieces; see docs/serving.md. SIGTERM finishes what runs.",
        ),
        "chroma": (
            chroma,
            "show the melody that a melody model extracts from a file",
            "Draws the loudest of the twelve pitch classes over time, as a melody model extracts "
            "them from the beginning of FILE. A shorter file repeats, as it does for the model.",
        ),
        "codec": (
            codec,
            "encode audio to a small file of codes, and decode it",
            "Encodes audio to a small file of codes, and decodes it.",
        ),
    },
    "judge music": {
        "evaluate": (
            evaluate,
            "measure a folder of clips against a reference",
            "Measures how far the clips of a folder are from real ones (FAD, KAD), and how well "
            "clips of the same name agree (KLD, chroma). The report says exactly what was "
            "computed.",
        ),
        "listen": (
            listen,
            "let people score clips blind in a browser, and analyse their scores",
            "Makes a blind listening study from folders of clips and serves it: raters score "
            "overall quality, fit to the text and fit to the melody from 1 to 100. Every score is "
            "on the disk before the page says so. If it is interrupted, run the same command "
            "again to go on.",
        ),
    },
    "models": {
        "convert": (
            convert_command,
            "convert an official PyTorch checkpoint",
            "Converts an official PyTorch checkpoint (a folder, a file or a Hub id).",
        ),
        "export-torch": (
            to_torch_command,
            "write a model in the official PyTorch formats",
            "Writes a model as files that audiocraft or transformers load.",
        ),
        "export": (
            export,
            "write a model as StableHLO, to run without this package",
            "Writes a model as programs in StableHLO next to its weights, to run with JAX and "
            "NumPy alone: the text encoder, the language model's loop and the codec's decoder.",
        ),
        "warmup": (
            warmup,
            "compile ahead of time what `generate` needs",
            "Compiles what `generate` needs and keeps it on disk, so that the first clip is as "
            "fast as the second.",
        ),
    },
    "training": {
        "finetune": (
            finetune,
            "train a model further on your own music",
            "Trains a model further on your own music: the whole language model, or with --lora "
            "an adapter of a few MB.",
        ),
        "train": (
            train,
            "train a codec or a language model from scratch",
            "Trains models: the codec on audio, the language model on the codec's codes.",
        ),
    },
}
