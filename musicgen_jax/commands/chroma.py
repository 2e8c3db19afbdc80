"""`musicgen-jax chroma`: a picture of the melody that a melody model extracts."""

import argparse
from pathlib import Path

from musicgen_jax import files
from musicgen_jax.commands import options
from musicgen_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    add("file", metavar="FILE", help="audio")
    add(
        "-o",
        "--output",
        default="chroma.png",
        metavar="FILE",
        help="a .png picture (needs matplotlib: the extra [plot]), or .npy for the data, float32 "
        "[T, 12] beginning with C",
    )
    options.add_separate(parser)


def run(args: argparse.Namespace) -> None:
    """Draws the chroma, or writes it as an array."""
    output = Path(args.output)
    if output.suffix.lower() not in (".png", ".npy"):
        raise UserError(f"the output must end in .png or .npy, got {args.output!r}")
    options.check_writable(output)
    if output.suffix.lower() == ".png":
        from musicgen_jax.audio import plot

        plot.require_matplotlib()

    import numpy as np

    from musicgen_jax import audio
    from musicgen_jax.conditioning.chroma import HOP, PITCHES
    from musicgen_jax.conditioning.melody import melodies_of
    from musicgen_jax.config import OFFICIAL_MODELS
    from musicgen_jax.runtime import compile_cache

    compile_cache.enable()
    # All official melody models extract the same melody: no weights are involved.
    config = OFFICIAL_MODELS["facebook/musicgen-melody"]
    seconds = config.max_duration
    wav, rate = audio.read(args.file, seconds=seconds + 2)
    separate = options.separate(args)
    melodies = melodies_of(config, wav, rate, separate=separate, duration=seconds)
    chroma = melodies.chroma_at(0.0)[0][0]
    if output.suffix.lower() == ".npy":
        with files.new_file(output) as file:
            np.save(file, chroma)
    else:
        last = (len(chroma) - 1) * HOP / config.sample_rate  # the middle of the last frame
        plot.draw_chroma(output, chroma, last, PITCHES, Path(args.file).name)
    print(f"wrote {output} ({len(chroma)} frames, {seconds:g} s)")
