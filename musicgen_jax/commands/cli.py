"""The command line. Arguments are parsed before jax is imported: `--help` answers at once."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from types import ModuleType

from musicgen_jax import __version__
from musicgen_jax.commands import (
    app,
    batch,
    bench,
    cache,
    chroma,
    codec,
    completion,
    doctor,
    endings,
    evaluate,
    export,
    finetune,
    generate,
    info,
    listen,
    models,
    serve,
    train,
    warmup,
)
from musicgen_jax.commands.streams import tolerant_streams
from musicgen_jax.console import log_as_lines
from musicgen_jax.convert import command as convert_command
from musicgen_jax.convert import to_torch_command
from musicgen_jax.errors import one_line
from musicgen_jax.runtime import memory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `musicgen-jax`.

    Args:
      argv: arguments, by default the process's own.

    Returns:
      the exit code: 0; 2 if the user can fix it, 1 if it is a bug of ours (one line on stderr says
        how or what); 130 after Ctrl-C; 143 after SIGTERM.
    """
    debug, arguments = endings.debug_flag(sys.argv[1:] if argv is None else argv)
    memory.return_freed_memory()
    with tolerant_streams(), log_as_lines():
        return endings.ended(lambda: _run(arguments), debug=debug)


def _run(argv: Sequence[str]) -> int:
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        hint = "; a PROMPT that begins with - comes after --" if args.run is generate.run else ""
        args.command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
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
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="musicgen-jax",
        usage="musicgen-jax COMMAND [OPTION ...]",
        epilog=_overview(),
        add_help=False,
    )
    # The last line of the overview names these three, to spare a screen the lines for each.
    add = partial(parser.add_argument, help=argparse.SUPPRESS)
    add("-h", "--help", action="help")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    add("--debug", action="store_true")  # `endings.debug_flag` takes it away, wherever it is
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", prog=parser.prog, help=argparse.SUPPRESS
    )
    for name, (module, _, description) in _commands().items():
        command = commands.add_parser(name, description=description)
        # Nested commands set a `run` of their own.
        command.set_defaults(run=getattr(module, "run", None), command=command)
        module.add_arguments(command)
    return parser


def _commands() -> dict[str, tuple[ModuleType, str, str]]:
    """Each command's module, its line in the overview, and the description in its own help.

    A command without a line shares the one of the command before it.
    """
    return {name: entry for group in _GROUPS.values() for name, entry in group.items()}


def _overview() -> str:
    """The commands by group, one line each."""
    lines = []
    for title, group in _GROUPS.items():
        rows: list[str] = []
        lines.append(f"{title}:")
        names: list[str] = []
        for name, (_, line, _) in reversed(group.items()):
            names.insert(0, name)
            if line:
                rows.append(f"  {', '.join(names):<20}  {line}")
                names.clear()
        lines += rows[::-1]
    return "\n".join([*lines, _LAST])


_LAST = "COMMAND --help lists its options; --debug shows an error's traceback; --version"

_GROUPS: dict[str, dict[str, tuple[ModuleType, str, str]]] = {
    "make music": {
        "generate": (
            generate,
            "make music from a prompt, a melody, a style or the start of a song",
            "Makes one clip per PROMPT, or continues a file, or makes music without a prompt.",
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
            "for long pieces; see docs/serving.md. SIGTERM stops it after the clips in hand.",
        ),
        "app": (
            app,
            "open a page in the browser that makes music, on this machine alone",
            "Opens a page in the browser that plays music while it is made; see docs/app.md. Only "
            "this machine can reach it.",
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
    "models": {
        "models": (
            models,
            "list local and official models; describe a model or a file",
            "Lists the bundled model, the converted ones in your folder, and the official names.",
        ),
        "info": (
            info,
            "",
            "Describes a model (parameters, window, licence, source) or a file: the "
            "settings inside a clip, codes, an adapter, statistics.",
        ),
        "convert": (
            convert_command,
            "convert an official PyTorch checkpoint",
            "Converts an official PyTorch checkpoint (a folder, a file or a Hub id).",
        ),
        "export": (
            export,
            "write a model as StableHLO, or in the official PyTorch formats",
            "Writes a model as programs in StableHLO next to its weights, to run with JAX and "
            "NumPy alone: the text encoder, the language model's loop and the codec's decoder.",
        ),
        "export-torch": (
            to_torch_command,
            "",
            "Writes a model as files that audiocraft or transformers load.",
        ),
        "warmup": (
            warmup,
            "compile the programs of `generate` ahead of time",
            "Compiles the programs that `generate` needs and keeps them on disk, so that the "
            "first clip is as fast as the second.",
        ),
    },
    "judge and train": {
        "evaluate": (
            evaluate,
            "measure clips, or a model, against real clips and captions",
            "Measures how far clips are from real ones (FAD, KAD), how well clips of the same name "
            "agree (KLD, chroma), and how well they fit their captions (CLAP). With --model it "
            "makes the clips first. The report says exactly what was computed.",
        ),
        "listen": (
            listen,
            "let people score clips blind in a browser, and analyse their scores",
            "Makes a blind listening study from folders of clips and serves it: raters score "
            "overall quality, fit to the text and fit to the melody from 1 to 100. Every score is "
            "on the disk before the page says so. If it is interrupted, run the same command "
            "again to continue.",
        ),
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
    "this machine": {
        "doctor": (
            doctor,
            "check what is installed, what fits and what is wrong",
            "Looks at versions, devices, memory, folders and the network, makes a second of "
            "music with nano and checks it. The exit code is 2 if something is wrong.",
        ),
        "bench": (
            bench,
            "measure this device: steps, first audio, codec, memory",
            "Measures an official model's shape with random weights on this device, without a "
            "download: steps per second, the share of the memory's copy bandwidth, the first "
            "audio, the codec, and the peak memory.",
        ),
        "cache": (
            cache,
            "list or remove compiled programs and models; complete words in a shell",
            "Lists and removes compiled programs and converted models in your folders.",
        ),
        "completion": (
            completion,
            "",
            "Prints a script that lets a shell complete commands and options.",
        ),
    },
}
