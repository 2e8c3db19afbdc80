"""Renders music for trying out training: `python -m musicgen_jax.nano.render OUT --n 50`.

It writes composed pieces as audio files, each with a metadata file next to it, in the format that
`musicgen-jax train` and `finetune` read. Nobody else holds rights in the music.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from musicgen_jax import audio
from musicgen_jax.nano import captions
from musicgen_jax.nano.composer import FRAME_RATE
from musicgen_jax.nano.pieces import piece
from musicgen_jax.nano.synth import SAMPLE_RATE

SEED = 50_000_000  # disjoint from the seeds in `nano.build`, so no data set there has these pieces


def render(folder: Path, count: int, seconds: float, first: int = 0) -> None:
    """Writes `count` pieces as `folder/00000.wav`, `folder/00000.json` and so on.

    Pieces that exist already are kept.

    Args:
      folder: the output folder, created if it does not exist.
      count: number of pieces.
      seconds: length of each piece.
      first: number of the first piece.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        path = folder / f"{number:05d}.wav"
        if path.exists():
            continue
        seed = SEED + number
        spec, waveform = piece(seed, round(seconds * FRAME_RATE))
        info = {
            "description": captions.training_caption(spec, np.random.default_rng((seed, 1))),
            "bpm": round(spec.bpm),
            "instrument": spec.lead,
            "moods": ["happy" if spec.mode == "major" else "sad"],
            "genre": spec.style,
        }
        path.with_suffix(".json").write_text(json.dumps(info))
        audio.write(path, waveform[None], SAMPLE_RATE, strategy="clip")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render music for trying out training.")
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder of .wav and .json files")
    parser.add_argument("--n", type=int, default=50, help="pieces")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each piece")
    parser.add_argument("--first", type=int, default=0, help="number of the first piece")
    arguments = parser.parse_args()
    render(arguments.folder, arguments.n, arguments.seconds, arguments.first)
