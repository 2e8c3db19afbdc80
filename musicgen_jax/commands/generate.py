"""`musicgen-jax generate`: music to files, or raw to a pipe."""

import argparse
import sys
from functools import partial
from pathlib import Path

from musicgen_jax.audio import STRATEGIES
from musicgen_jax.commands import options
from musicgen_jax.config import CACHE_DTYPES, DTYPES
from musicgen_jax.errors import UserError

FORMATS = (".wav", ".flac")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
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
        "without: float32 on a CPU, bfloat16 elsewhere",
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
    options.add_separate(parser)
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


def run(args: argparse.Namespace) -> None:
    """Makes the clips and writes them."""
    prompts = _prompts(args)
    if args.stream and (len(prompts) > 1 or args.resume or args.save_codes):
        raise UserError("--stream is for one clip, without --resume and --save-codes")
    files = [] if args.stream else _output_files(Path(args.output), len(prompts))
    for file in files:
        options.check_writable(file)

    # From here on it may take a while.
    import numpy as np

    from musicgen_jax import audio
    from musicgen_jax.commands import output
    from musicgen_jax.generation import window_store
    from musicgen_jax.generation.piece import MAX_DURATION
    from musicgen_jax.model import MusicGen

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
            separate=options.separate(args) if model.config.lm.chroma_bins else False,
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
        window_store.discard(folder)


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
