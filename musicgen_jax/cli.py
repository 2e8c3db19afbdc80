"""The command line. Arguments are parsed before jax is imported: `--help` answers at once."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from musicgen_jax import (
    __version__,
    batch_command,
    codec_command,
    export_command,
    options,
    warmup_command,
)
from musicgen_jax.audio import STRATEGIES
from musicgen_jax.errors import UserError
from musicgen_jax.training import command as training_command
from musicgen_jax.training import finetune_command

FORMATS = (".wav", ".flac")
DTYPES = ("float32", "bfloat16", "int8")
CACHE_DTYPES = ("float32", "bfloat16", "float8_e4m3fn")
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
    _add_chroma_arguments(chroma)
    chroma.set_defaults(run=_chroma)

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
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    warmup_command.add_arguments(warmup)

    export = commands.add_parser(
        "export",
        help="a model as StableHLO, to run without this package",
        description="Writes a model as programs in StableHLO beside its weights, to be run with "
        "JAX and NumPy alone: the text encoder, the language model's loop and the codec's decoder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    export_command.add_arguments(export)

    finetune = commands.add_parser(
        "finetune",
        help="teach a model your own music",
        description="Goes on training a model on your own music: all of its language model, or "
        "with --lora an adapter of a few MB beside it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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


def _add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what the music should be like")
    add(
        "--model",
        default="nano",
        help="nano, a converted model's folder, or an official name such as musicgen-small",
    )
    add(
        "--dtype",
        choices=DTYPES,
        help="of the language model; int8 is the fastest on a CPU and not exactly the same music; "
        "None is float32 on a CPU, bfloat16 elsewhere",
    )
    add(
        "--cache-dtype",
        choices=CACHE_DTYPES,
        help="of the language model's memory of the steps so far; float8_e4m3fn is for large "
        "batches on a GPU or TPU, and not exactly the same music",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="PATH[:SCALE]",
        help="a fine-tuned adapter, and how much of it; several add up",
    )
    add(
        "-o",
        "--output",
        default="out.wav",
        metavar="FILE",
        help="a .wav or .flac file, overwritten if it exists, its folder made if it does not; "
        "several clips become out-0.wav, out-1.wav and so on",
    )
    add(
        "--duration",
        type=float,
        default=8.0,
        metavar="SECONDS",
        help="with the prompt audio; longer than the model sees at once (30 s) is made window by "
        "window and written as it goes, keeping what is done in FILE.partial",
    )
    options.add_windows(parser)
    add(
        "--resume",
        action="store_true",
        help="go on with a long piece that was cut off, from its last finished window",
    )
    add(
        "--stream",
        metavar="FILE",
        help="no output file: raw 16-bit PCM while the music is made, to FILE or, if it is -, "
        "to stdout; rate and channels are told on stderr",
    )
    options.add_sampling(parser)
    options.add_devices(parser)
    add("--continue-from", metavar="FILE", help="audio that the music begins with")
    add("--melody", metavar="FILE", help="audio whose melody the music follows (melody models)")
    _add_separate(parser)
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


def _add_separate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--separate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="hear the melody without its drums and bass, as the original does (needs the "
        "converted separator htdemucs); without either: if that is there",
    )


def _separate(args: argparse.Namespace) -> bool | None:
    """What the user chose, else whether the separator is there, saying so if it is not."""
    from musicgen_jax.melody import NOT_SEPARATED, separator_at_hand

    if args.separate is None and not separator_at_hand():
        print(f"musicgen-jax: {NOT_SEPARATED}", file=sys.stderr)
        return False
    return args.separate


def _add_chroma_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="audio")
    add(
        "-o",
        "--output",
        default="chroma.png",
        metavar="FILE",
        help="a .png picture (needs matplotlib: the extra [plot]), or .npy for the data, float32 "
        "[T, 12] beginning with C (default: chroma.png)",
    )
    _add_separate(parser)


def _chroma(args: argparse.Namespace) -> None:
    output = Path(args.output)
    if output.suffix.lower() not in (".png", ".npy"):
        raise UserError(f"the output must end in .png or .npy, got {args.output!r}")
    _check_writable(output)
    if output.suffix.lower() == ".png":
        from musicgen_jax import plot

        plot.require_matplotlib()

    import numpy as np

    from musicgen_jax import audio, compile_cache
    from musicgen_jax.conditioning.chroma import HOP, PITCHES
    from musicgen_jax.config import OFFICIAL_MODELS
    from musicgen_jax.melody import Melodies, check_melodies

    compile_cache.enable()
    # Every official melody model hears the same: no weights are involved.
    config = OFFICIAL_MODELS["facebook/musicgen-melody"]
    seconds = config.max_duration
    wav, rate = audio.read(args.file, seconds=seconds + 2)
    clips = check_melodies(wav, rate, seconds=seconds)
    melodies = Melodies(clips, rate, config=config, duration=seconds, separate=_separate(args))
    chroma = melodies.chroma_at(0.0)[0][0]
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() == ".npy":
        with tempfile.NamedTemporaryFile(dir=output.parent, suffix=".npy", delete=False) as aside:
            np.save(aside, chroma)
        os.replace(aside.name, output)
    else:
        last = (len(chroma) - 1) * HOP / config.sample_rate  # the middle of the last frame
        plot.draw_chroma(output, chroma, last, PITCHES, Path(args.file).name)
    print(f"wrote {output} ({len(chroma)} frames, {seconds:g} s)")


def _generate(args: argparse.Namespace) -> None:
    prompts = _prompts(args)
    if args.stream and (len(prompts) > 1 or args.resume or args.save_codes):
        raise UserError("--stream is for one clip, without --resume and --save-codes")
    files = [] if args.stream else _output_files(Path(args.output), len(prompts))
    for file in files:
        _check_writable(file)

    # From here on it may take a while.
    import numpy as np

    from musicgen_jax import audio, output, resume
    from musicgen_jax.model import MusicGen
    from musicgen_jax.piece import MAX_DURATION

    source = audio.read(args.continue_from) if args.continue_from else None
    style = audio.read(args.style) if args.style else None
    if args.melody:
        audio.read(args.melody, seconds=1)  # finds out at once whether it can be read
    adapters = dict(map(_adapter, args.adapter))
    model = MusicGen.from_pretrained(
        args.model,
        dtype=args.dtype,
        cache_dtype=args.cache_dtype,
        adapters={path: path for path in adapters},
        mesh=options.mesh(args),
    )
    if adapters:
        model = model.use_adapter(adapters)
    settings = {
        "duration": args.duration,
        "seed": args.seed,
        **options.sampling(args),
        "extend_stride": args.extend_stride,
        "join": args.join,
        "progress": sys.stderr.isatty(),
    }
    if args.melody:
        # As much as the windows of the piece hear: the file may be hours long.
        duration = args.duration if 0 < args.duration < float("inf") else 0.0  # refused below
        make = partial(
            model.generate_with_chroma,
            prompts,
            *audio.read(args.melody, seconds=duration + model.max_duration + 2),
            separate=_separate(args) if model.config.lm.chroma_bins else False,
            cfg_coef_beta=args.cfg_coef_beta,
            **settings,
        )
    elif style is not None:
        make = partial(
            model.generate_with_style,
            prompts,
            *style,
            eval_q=args.eval_q,
            excerpt_length=args.excerpt_length,
            cfg_coef_beta=args.cfg_coef_beta,
            **settings,
        )
    elif source is None:
        make = partial(model.generate, prompts, **settings)
    else:
        make = partial(model.generate_continuation, *source, prompts, **settings)
    if args.stream:
        output.to_pipe(make, model, args.stream)
        return
    long = model.max_duration < args.duration <= MAX_DURATION
    folder = output.partial_folder(args.output)
    if long:
        out = output.to_files(
            make,
            model,
            files,
            folder=folder,
            go_on=args.resume,
            duration=args.duration,
            strategy=args.strategy,
        )
    else:  # at once; nothing of it could be resumed
        out = make()
        for file, wav in zip(files, out.audio, strict=True):
            audio.write(file, wav, out.sample_rate, args.strategy, loudness_compressor=True)
    for file, codes in zip(files, out.codes, strict=True):
        print(f"wrote {file} ({codes.shape[1] / model.frame_rate:.2f} s)")
        if args.save_codes:
            np.save(file.with_suffix(".npy"), codes)
            print(f"wrote {file.with_suffix('.npy')}")
    if long:
        resume.discard(folder)


def _adapter(text: str) -> tuple[str, float]:
    """The path and the scale of an adapter, 1 if none is given."""
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).is_file() or "/" in scale or "\\" in scale:
        return text, 1.0
    try:
        return path, float(scale)
    except ValueError:
        raise UserError(
            f"--adapter {text}: {scale!r} is no number: give PATH or PATH:SCALE"
        ) from None


def _prompts(args: argparse.Namespace) -> list[str | None]:
    """The description of each clip, None where there is none."""
    files = {
        "--melody": args.melody, "--style": args.style, "--continue-from": args.continue_from
    }  # fmt: skip
    if len(given := [name for name, file in files.items() if file]) > 1:
        raise UserError(f"{' and '.join(given)} do not go together: give one of them")
    if args.cfg_coef_beta is not None and not (args.style or args.melody):
        raise UserError(
            "--cfg-coef-beta weighs the prompt against a style or a melody: give --style FILE or "
            "--melody FILE too"
        )
    if args.prompts and args.unconditional is not None:
        raise UserError("--unconditional N makes clips without a prompt: give it or PROMPT")
    if args.unconditional is not None:
        if args.unconditional < 1:
            raise UserError(f"--unconditional must be at least 1, got {args.unconditional}")
        return [None] * args.unconditional
    if args.prompts:
        return args.prompts
    if args.continue_from or args.style or args.melody:
        return [None]
    raise UserError(
        "nothing to generate: give a PROMPT, --unconditional N, --melody FILE, --style FILE or "
        "--continue-from FILE"
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
