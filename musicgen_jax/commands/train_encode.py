"""`musicgen-jax train encode`: audio files to shards of codes, for `train lm` and `finetune`."""

import argparse

from musicgen_jax import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    add(
        "data",
        metavar="DATA",
        help="a folder of audio, with descriptions in NAME.txt or NAME.json next to NAME.wav; or a "
        "manifest as audiocraft writes it (.jsonl, .jsonl.gz)",
    )
    add("output", metavar="OUT", help="the folder to make, or to finish after an interruption")
    add(
        "--model",
        default="nano",
        help="whose codec encodes: nano (the default), the folder of a converted model or codec, "
        "or an official name such as musicgen-small",
    )
    add(
        "--seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="how much of a file is encoded at once (default: 30); more takes more memory, and "
        "the codes hardly depend on it",
    )
    add(
        "--shard-mb",
        type=float,
        default=16.0,
        metavar="MB",
        help="size of a file of codes (default: 16); an interruption loses at most this much",
    )
    add(
        "--batch-size",
        type=int,
        metavar="B",
        help="how many such stretches are encoded at once (default: 1 on a CPU, else 8)",
    )
    add(
        "--melody",
        action="store_true",
        help="also store the melody of each clip, as a melody model hears it; it is stored "
        "anyway if MODEL is one",
    )
    add(
        "--excerpt-length",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="length of the excerpts whose style is stored if MODEL is a style model (default: "
        "3); style models are trained with 1.5 to 4.5",
    )
    add(
        "--separate",
        action=argparse.BooleanOptionalAction,
        help="take melodies without drums and bass, or with them (default: without them if "
        "htdemucs is converted)",
    )
    console.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Encodes and says what there is."""
    from musicgen_jax.runtime import compile_cache
    from musicgen_jax.training.data.encode import encode

    out = console.Console.of(args)
    compile_cache.enable()
    made = encode(
        args.data,
        args.output,
        args.model,
        seconds=args.seconds,
        shard_mb=args.shard_mb,
        batch_size=args.batch_size,
        melody=args.melody,
        separate=args.separate,
        excerpt_length=args.excerpt_length,
        log=out.say,
        bar=out.bar,
    )
    hours = made.num_frames_total / made.frame_rate / 3600
    out.made(
        f"wrote {made.folder} ({len(made)} clips, {hours:.2f} h, {made.codebooks} codebooks, "
        f"skipped {made.skipped})",
        folder=str(made.folder),
        clips=len(made),
        hours=hours,
        codebooks=made.codebooks,
        skipped=made.skipped,
    )
