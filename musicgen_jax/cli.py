"""The command line. Arguments are parsed before jax is imported: `--help` answers at once."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from musicgen_jax import __version__
from musicgen_jax.audio import STRATEGIES
from musicgen_jax.errors import UserError

FORMATS = (".wav", ".flac")
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


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

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
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_generate_arguments(generate)
    generate.set_defaults(run=_generate)

    convert = commands.add_parser(
        "convert",
        help="convert an official PyTorch checkpoint",
        description="Converts an official PyTorch checkpoint (a folder, a file or a Hub id).",
    )
    from musicgen_jax.convert import add_arguments, run

    add_arguments(convert)
    convert.set_defaults(run=run)
    return parser


def _add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what the music should be like")
    add(
        "--model",
        default="nano",
        help="nano, a converted model's folder, or an official name such as musicgen-small",
    )
    add(
        "-o",
        "--output",
        default="out.wav",
        metavar="FILE",
        help="a .wav or .flac file, overwritten if it exists, its folder made if it does not; "
        "several clips become out-0.wav, out-1.wav and so on",
    )
    add("--duration", type=float, default=8.0, metavar="SECONDS", help="with the prompt audio")
    add("--seed", type=int, default=0, help="same seed, same music")
    add("--greedy", action="store_true", help="always the most likely token: no sampling")
    add("--top-k", type=int, default=250, metavar="K", help="sample among K tokens; 0: all")
    add("--top-p", type=float, default=0.0, metavar="P", help="sample among mass P; 0: all")
    add("--temperature", type=float, default=1.0, metavar="T", help="higher is wilder")
    add("--cfg-coef", type=float, default=3.0, metavar="C", help="how far to follow the prompt")
    add("--continue-from", metavar="FILE", help="audio that the music begins with")
    add("--style", metavar="FILE", help="audio that the music sounds like (the style model)")
    add(
        "--cfg-coef-beta",
        type=float,
        metavar="BETA",
        help="how far to follow the prompt beside a style, 1 to 9; audiocraft advises 5",
    )
    add("--eval-q", type=int, default=3, metavar="Q", help="how closely to follow the style, 1-6")
    add("--excerpt-length", type=float, default=3.0, metavar="SECONDS", help="heard of the style")
    add("--unconditional", type=int, metavar="N", help="N clips without a prompt")
    add(
        "--strategy",
        choices=STRATEGIES,
        default="loudness",
        help="the level of the file: loudness (-14 LUFS, soft limiter), peak (-1 dBFS), "
        "rms (-18 dBFS), or clip (as it is, cut at -1 dBFS)",
    )
    add("--save-codes", action="store_true", help="also write the tokens, as .npy [K, T]")


def _generate(args: argparse.Namespace) -> None:
    prompts = _prompts(args)
    files = _output_files(Path(args.output), len(prompts))
    for file in files:
        _check_writable(file)

    # From here on it may take a while.
    import numpy as np

    from musicgen_jax import audio
    from musicgen_jax.model import MusicGen

    source = audio.read(args.continue_from) if args.continue_from else None
    style = audio.read(args.style) if args.style else None
    model = MusicGen.from_pretrained(args.model)
    settings = {
        "duration": args.duration,
        "seed": args.seed,
        "use_sampling": not args.greedy,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "temperature": args.temperature,
        "cfg_coef": args.cfg_coef,
        "progress": sys.stderr.isatty(),
    }
    if style is not None:
        out = model.generate_with_style(
            prompts,
            *style,
            eval_q=args.eval_q,
            excerpt_length=args.excerpt_length,
            cfg_coef_beta=args.cfg_coef_beta,
            **settings,
        )
    elif source is None:
        out = model.generate(prompts, **settings)
    else:
        out = model.generate_continuation(*source, prompts, **settings)
    for file, wav, codes in zip(files, out.audio, out.codes, strict=True):
        audio.write(file, wav, out.sample_rate, args.strategy, loudness_compressor=True)
        print(f"wrote {file} ({wav.shape[1] / out.sample_rate:.2f} s)")
        if args.save_codes:
            np.save(file.with_suffix(".npy"), codes)
            print(f"wrote {file.with_suffix('.npy')}")


def _prompts(args: argparse.Namespace) -> list[str | None]:
    """The description of each clip, None where there is none."""
    if args.style and args.continue_from:
        raise UserError("--style and --continue-from do not go together: give one of them")
    if args.cfg_coef_beta is not None and not args.style:
        raise UserError("--cfg-coef-beta weighs the prompt against a style: give --style FILE too")
    if args.prompts and args.unconditional is not None:
        raise UserError("--unconditional N makes clips without a prompt: give it or PROMPT")
    if args.unconditional is not None:
        if args.unconditional < 1:
            raise UserError(f"--unconditional must be at least 1, got {args.unconditional}")
        return [None] * args.unconditional
    if args.prompts:
        return args.prompts
    if args.continue_from or args.style:
        return [None]
    raise UserError(
        "nothing to generate: give a PROMPT, --unconditional N, --style FILE or --continue-from FILE"
    )


def _output_files(output: Path, count: int) -> list[Path]:
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"the output must end in {' or '.join(FORMATS)}, got {str(output)!r}")
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(count)]


def _check_writable(file: Path) -> None:
    """Finds out before minutes of work, by trying: permissions alone do not tell."""
    if file.is_dir():
        raise UserError(f"cannot write {file}: it is a folder")
    if file.exists() and not os.access(file, os.W_OK):
        raise UserError(f"cannot write {file}: it is write-protected")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None
