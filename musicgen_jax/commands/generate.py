"""`musicgen-jax generate`: music to files, or raw to a pipe."""

import argparse
import dataclasses
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_jax.audio import FORMATS, STRATEGIES, clip_settings
from musicgen_jax.commands import first_run, made, options, schedule_file
from musicgen_jax.config import CACHE_DTYPES
from musicgen_jax.console import Console
from musicgen_jax.errors import UserError, one_line
from musicgen_jax.files import new_file
from musicgen_jax.generation.settings import MAX_DURATION, Sampling
from musicgen_jax.storage.hub import BUNDLED, BUNDLED_MELODY, BUNDLED_MODELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from musicgen_jax.commands.output import Make
    from musicgen_jax.generation.program_name import ProgramName
    from musicgen_jax.generation.schedule import Cue
    from musicgen_jax.model import MusicGen

_MOST_STDIN = 1 << 20  # bytes of prompts
_MOST_CLIPS = 1000  # in one call, which makes them all at once

# Of options that need another one, or exclude one: if they are given, they must have an effect.
_DEFAULTS = {"output": "out.wav", "strategy": "loudness", "eval_q": 3, "excerpt_length": 3.0}
_OF_A_FILE = ("output", "strategy", "json", "resume", "save_codes")
_OF_A_SOUND = {"eval_q": "style", "excerpt_length": "style", "separate": "melody"}
_FILES = ("melody", "style", "continue_from", "schedule", "stream", "output")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    add(
        "prompts",
        nargs="*",
        metavar="PROMPT",
        help="a description of the music; a single - reads one from each line of stdin",
    )
    add(
        "--model",
        help=f"{BUNDLED}, {BUNDLED_MELODY}, a converted model's folder, or an official name such "
        f"as musicgen-small (default: {BUNDLED}; with --melody {BUNDLED_MELODY})",
    )
    options.add_dtype(parser)
    add(
        "--cache-dtype",
        choices=CACHE_DTYPES,
        help="dtype of the language model's key-value cache; float8_e4m3fn is for large batches "
        "on a GPU or TPU, and the music is not exactly the same (default: as the language "
        "model; float32 on a CPU)",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="PATH[:SCALE]",
        help="a fine-tuned adapter and its strength (default: 1); several add up",
    )
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="a .wav, .flac, .mp3 or .ogg file; overwritten if it exists, and its folder is "
        "created. Several clips become out-0.wav, out-1.wav and so on "
        f"(default: {_DEFAULTS['output']})",
    )
    options.add_duration(
        parser,
        "length, including the prompt audio; a piece longer than the model's window (30 s; "
        "nano-melody: 10 s) is made window by window and written as it grows, with finished "
        "windows kept in FILE.partial",
    )
    options.add_windows(parser)
    add(
        "--resume",
        action="store_true",
        help="continue an interrupted long piece from its last finished window",
    )
    add(
        "--stream",
        metavar="FILE",
        help="instead of an output file: raw 16-bit PCM while the music is made, to FILE, or to "
        "stdout if FILE is -; stderr names the rate and channels",
    )
    add(
        "--play",
        action="store_true",
        help="instead of an output file: play the music while it is made, with aplay, pacat, play "
        "(sox) or ffplay, whichever is there",
    )
    options.add_negative(parser)
    options.add_schedule(parser)
    options.add_sampling(parser)
    options.add_slots(
        parser,
        "make the same samples as a server with N slots, or as `batch --slots N`, at any load "
        "(default: the program that is fastest for the clips of this call)",
    )
    options.add_devices(parser)
    add("--continue-from", metavar="FILE", help="audio that the music begins with")
    add("--melody", metavar="FILE", help="audio whose melody the music follows (melody models)")
    options.add_separate(parser)
    add("--style", metavar="FILE", help="audio whose style the music imitates (the style model)")
    add(
        "--cfg-coef-beta",
        type=float,
        metavar="BETA",
        help="how closely to follow the prompt when there is a style or melody, 1 to 9; audiocraft "
        "advises 5 for a style",
    )
    add(
        "--eval-q",
        type=int,
        metavar="Q",
        help=f"how closely to follow the style, 1-6 (default: {_DEFAULTS['eval_q']})",
    )
    add(
        "--excerpt-length",
        type=float,
        metavar="SECONDS",
        help="length of the style excerpt that the model uses (default: "
        f"{_DEFAULTS['excerpt_length']})",
    )
    add("--unconditional", type=int, metavar="N", help="make N clips without a prompt")
    add(
        "--strategy",
        choices=STRATEGIES,
        help="the level of the file: loudness (-14 LUFS, soft limiter), peak (-1 dBFS), "
        "rms (-18 dBFS), or clip (unchanged, clipped at -1 dBFS) "
        f"(default: {_DEFAULTS['strategy']})",
    )
    add("--save-codes", action="store_true", help="also write the tokens, as .npy [K, T]")
    options.add_reports(parser)


def run(args: argparse.Namespace) -> None:
    """Makes the clips and writes them."""
    _check_options(args)
    for name, value in _DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.model is None:
        args.model = BUNDLED_MELODY if args.melody else BUNDLED
    prompts = _prompts(args)
    sampling = options.sampling(args)
    schedule = schedule_file.read(args.schedule) if args.schedule else ()
    if (args.stream or args.play) and len(prompts) > 1:
        name = "--stream" if args.stream else "--play"
        raise UserError(f"{name} is for one clip: give one PROMPT")
    if args.stream and args.stream != "-":
        _check_stream(Path(args.stream))
    if args.play:
        from musicgen_jax.commands import output

        output.player(1, 1)  # refuses now, before minutes of work
    files = [] if args.stream or args.play else _output_files(Path(args.output), len(prompts))
    for file in files:
        options.check_writable(file)

    heard = _heard(args, prompts)
    with first_run.announced(Console.of(args).note):
        _generate(args, prompts, sampling, schedule, files, heard)


def _generate(
    args: argparse.Namespace,
    prompts: list[str | None],
    sampling: Sampling,
    schedule: "Sequence[Cue]",
    files: list[Path],
    heard: list[dict[str, Any]],
) -> None:
    """Whatever may take a while."""
    from musicgen_jax.commands import output
    from musicgen_jax.generation import window_store
    from musicgen_jax.runtime import compile_cache

    sound = _Sound.read(args)
    compile_cache.enable()
    model = _model(args)
    make = _request(args, model, prompts, sampling, sound)
    make = partial(make, schedule=schedule)
    if args.stream:
        output.to_pipe(make, model, args.stream)
        return
    if args.play:
        output.to_player(make, model)
        return

    def settings(clip: int, program: "ProgramName | None") -> dict[str, Any]:
        number = clip if len(prompts) > 1 else None
        texts = {"prompt": prompts[clip], "negative": args.negative, "schedule": schedule}
        named = {"seed": args.seed, "clip": number, "program": program}
        return made.settings(args, model, sampling, **texts, **named)

    def comment(clip: int, program: "ProgramName | None") -> str:
        return clip_settings.dump(settings(clip, program))

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
            comment=comment,
        )
    else:  # at once: there is nothing that could be resumed
        from musicgen_jax import audio

        out = make()
        level = {"strategy": args.strategy, "loudness_compressor": True}
        for i, (file, wav) in enumerate(zip(files, out.audio, strict=True)):
            audio.write(file, wav, out.sample_rate, **level, comment=comment(i, out.program))
    for i, file in enumerate(files):
        said = {**settings(i, out.program), **heard[i]}
        _report(args, file, out.codes[i], model.frame_rate, said)
    if long:
        window_store.discard(folder)


@dataclasses.dataclass(frozen=True)
class _Sound:
    """The audio files that the command names, as (audio, sample rate)."""

    source: "tuple[np.ndarray, int] | None" = None
    style: "tuple[np.ndarray, int] | None" = None

    @classmethod
    def read(cls, args: argparse.Namespace) -> "_Sound":
        from musicgen_jax import audio

        if args.melody:
            audio.read(args.melody, seconds=1)  # fails at once if it cannot be read
        source = audio.read(args.continue_from) if args.continue_from else None
        return cls(source, audio.read(args.style) if args.style else None)


def _model(args: argparse.Namespace) -> "MusicGen":
    from musicgen_jax.model import MusicGen

    adapters: dict[str, float] = {}
    for path, scale in map(_adapter, args.adapter):
        adapters[path] = adapters.get(path, 0.0) + scale
    model = MusicGen.from_pretrained(
        args.model,
        dtype=args.dtype,
        cache_dtype=args.cache_dtype,
        adapters={path: path for path in adapters},
        mesh=options.mesh(args),
    )
    return model.use_adapter(adapters) if adapters else model


def _request(
    args: argparse.Namespace,
    model: "MusicGen",
    prompts: list[str | None],
    sampling: Sampling,
    sound: _Sound,
) -> "Make":
    """The method of the model that makes the music, with its arguments."""
    settings = {
        "duration": args.duration,
        "seed": args.seed,
        **options.keywords(sampling),
        "extend_stride": args.extend_stride,
        "join": args.join,
        "slots": args.slots,
        "negative_descriptions": [args.negative] * len(prompts) if args.negative else None,
        "progress": sys.stderr.isatty() and not args.quiet,
    }
    if args.melody:
        from musicgen_jax import audio

        # As much as the windows of the piece need: the file may be hours long.
        duration = args.duration if 0 < args.duration < float("inf") else 0.0  # refused below
        return partial(
            model.generate_with_chroma,
            prompts,
            *audio.read(args.melody, seconds=duration + model.max_duration + 2),
            separate=options.separate(args) if model.config.lm.chroma_bins else False,
            cfg_coef_beta=sampling.cfg_coef_beta,
            **settings,
        )
    if sound.style is not None:
        return partial(
            model.generate_with_style,
            prompts,
            *sound.style,
            eval_q=args.eval_q,
            excerpt_length=args.excerpt_length,
            cfg_coef_beta=sampling.cfg_coef_beta,
            **settings,
        )
    if sound.source is not None:
        return partial(model.generate_continuation, *sound.source, prompts, **settings)
    return partial(model.generate, prompts, **settings)


def _report(
    args: argparse.Namespace,
    file: Path,
    codes: "np.ndarray",
    frame_rate: float,
    settings: dict[str, Any],
) -> None:
    """Says what was written for a clip with codes [K, T]; writes the codes if they are wanted."""
    import numpy as np

    seconds, saved = codes.shape[1] / frame_rate, None
    if args.save_codes:
        saved = file.with_suffix(".npy")
        with new_file(saved) as opened:
            np.save(opened, codes)
    if args.json:
        line = {"file": str(file), "seconds": seconds, **settings}
        print(json.dumps(line | ({"codes": str(saved)} if saved else {})), flush=True)
    elif not args.quiet:
        print(f"wrote {file} ({seconds:.2f} s)")
        if saved:
            print(f"wrote {saved}")


def _heard(args: argparse.Namespace, prompts: list[str | None]) -> list[dict[str, Any]]:
    """What a bundled model understands of each prompt, for `--json`; prints the unknown words."""
    if args.model not in BUNDLED_MODELS or args.adapter:  # an adapter may have taught it more
        return [{}] * len(prompts)
    from musicgen_jax.nano.hearing import hear

    found = [hear(prompt) if prompt else None for prompt in prompts]
    for i, heard in enumerate(found):
        if heard and not heard.whole and not args.quiet:
            clip = f" in clip {i}" if len(found) > 1 else ""
            print(one_line(f"{args.model} heard{clip}: {heard}"), file=sys.stderr, flush=True)
    return [{"heard": dataclasses.asdict(heard)} if heard else {} for heard in found]


def _adapter(text: str) -> tuple[str, float]:
    """The path and the scale of an adapter; the default scale is 1."""
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).is_file() or "/" in scale or "\\" in scale:
        return text, 1.0
    try:
        return path, float(scale)
    except ValueError:
        raise UserError(
            f"--adapter {text}: {scale!r} is not a number: give PATH or PATH:SCALE"
        ) from None


def _check_options(args: argparse.Namespace) -> None:
    """UserError if an option would have no effect."""
    for name in _FILES:
        if getattr(args, name) == "":
            raise UserError(f"{_option(name)} needs the name of a file, got an empty one")
    for name, sound in _OF_A_SOUND.items():
        value = getattr(args, name)
        if value is not None and not getattr(args, sound):
            given = f"--no-{name}" if value is False else _option(name)
            raise UserError(f"{given} only matters with --{sound} FILE")
    if args.stream and args.play:
        raise UserError("--stream and --play cannot be combined: give one of them")
    if args.stream or args.play:
        for name in _OF_A_FILE:
            if getattr(args, name):
                raise UserError(
                    f"{_option(name)} is for a file, and {'--stream' if args.stream else '--play'} "
                    "writes none: give one of them"
                )


def _check_stream(target: Path) -> None:
    """UserError now, before minutes of work, if `target` cannot be written; it may be a pipe."""
    if not target.exists() or target.is_dir():
        options.check_writable(target)
    elif not os.access(target, os.W_OK):
        raise UserError(f"cannot write {target}: it is write-protected")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _prompts(args: argparse.Namespace) -> list[str | None]:
    """The description of each clip, None where there is none."""
    files = {
        "--melody": args.melody, "--style": args.style, "--continue-from": args.continue_from
    }  # fmt: skip
    if len(given := [name for name, file in files.items() if file]) > 1:
        raise UserError(f"{' and '.join(given)} cannot be combined: give one of them")
    if args.cfg_coef_beta is not None and not (args.style or args.melody):
        raise UserError(
            "--cfg-coef-beta weighs the prompt against a style or a melody: give --style FILE or "
            "--melody FILE too"
        )
    if args.prompts and args.unconditional is not None:
        raise UserError("--unconditional N makes clips without a prompt: give it or PROMPT")
    if args.unconditional is not None:
        if not 1 <= args.unconditional <= _MOST_CLIPS:
            raise UserError(
                f"--unconditional must be from 1 to {_MOST_CLIPS}, got {args.unconditional}; "
                "`musicgen-jax batch` makes more"
            )
        return [None] * args.unconditional
    if args.prompts == ["-"]:
        return _prompts_of_stdin()
    if "-" in args.prompts:
        raise UserError("- reads the prompts from stdin: give it alone, or leave it out")
    if args.prompts:
        return args.prompts
    if args.continue_from or args.style or args.melody or args.schedule:
        return [None]
    raise UserError(
        "nothing to generate: give a PROMPT, --unconditional N, --melody FILE, --style FILE, "
        "--continue-from FILE or --schedule FILE; a PROMPT that begins with - comes after --"
    )


def _prompts_of_stdin() -> list[str | None]:
    """One prompt for each line of stdin that is not empty."""
    stdin = getattr(sys.stdin, "buffer", None)
    data = stdin.read(_MOST_STDIN + 1) if stdin else b""
    if len(data) > _MOST_STDIN:
        raise UserError(f"stdin holds more than {_MOST_STDIN} bytes of prompts")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError("the prompts on stdin are not UTF-8") from None
    prompts: list[str | None] = [line.strip() for line in lines if line.strip()]
    if not 1 <= len(prompts) <= _MOST_CLIPS:
        raise UserError(
            f"stdin must hold from 1 to {_MOST_CLIPS} prompts, a line each, got {len(prompts)}; "
            "`musicgen-jax batch` makes more"
        )
    return prompts


def _output_files(output: Path, count: int) -> list[Path]:
    if output.suffix.lower() not in FORMATS:
        *others, last = FORMATS
        names = f"{', '.join(others)} or {last}"
        raise UserError(f"the output must end in {names}, got {str(output)!r}")
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(count)]
