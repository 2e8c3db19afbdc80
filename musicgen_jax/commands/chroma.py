"""`musicgen-jax chroma`: a picture of the melody that a melody model hears and plays."""

import argparse
from pathlib import Path

from musicgen_jax import console, files
from musicgen_jax.commands import options
from musicgen_jax.errors import UserError

_OFFICIAL = "facebook/musicgen-melody"


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
    add(
        "--model",
        default=_OFFICIAL,
        help="a melody model: nano-melody, a folder, or an official name, for which no weights are "
        f"needed (default: {_OFFICIAL})",
    )
    options.add_separate(parser)
    console.add_arguments(parser)


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
    from musicgen_jax.commands.info_of import official_name
    from musicgen_jax.conditioning.chroma import PITCHES
    from musicgen_jax.conditioning.melody import melodies_of
    from musicgen_jax.config import OFFICIAL_MODELS
    from musicgen_jax.runtime import compile_cache
    from musicgen_jax.storage import checkpoint
    from musicgen_jax.storage.hub import find_model

    compile_cache.enable()
    # A codec has an official name too; the search for a model then says which models there are.
    config = OFFICIAL_MODELS.get(official_name(args.model) or "")
    config = config or checkpoint.load_config(find_model(args.model))
    seconds = config.max_duration
    wav, rate = audio.read(args.file, seconds=seconds + 2)
    separate = options.separate(args)
    melodies = melodies_of(config, wav, rate, separate=separate, duration=seconds)
    played, move = melodies.chroma_at(0.0)[0][0], melodies.moves[0]
    if output.suffix.lower() == ".npy":
        with files.new_file(output) as file:
            np.save(file, played)
    else:
        name = Path(args.file).name
        pictures = {name: played}
        if move is not None:
            cents = round(100 * move.tuning)
            tuned = f", {abs(cents)} cents {'sharp' if cents > 0 else 'flat'}" if cents else ""
            heard = np.roll(played, -move.semitones, axis=1)
            pictures = {
                f"{name}: heard in {move.heard}{tuned}": heard,
                f"played in {move.played}": played,
            }
        last = (len(played) - 1) * config.lm.chroma_hop / config.sample_rate
        plot.draw_chroma(output, pictures, last, PITCHES)
    console.Console.of(args).made(
        f"wrote {output} ({len(played)} frames, {seconds:g} s)",
        file=str(output),
        frames=len(played),
        seconds=seconds,
    )
