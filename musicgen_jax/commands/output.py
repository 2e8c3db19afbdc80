"""Where the command line sends music: to files while it is made, or raw to a pipe."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from musicgen_jax.audio import GrowingFile
from musicgen_jax.audio.level import apply_level
from musicgen_jax.errors import UserError
from musicgen_jax.generation.window_store import check_ours
from musicgen_jax.model import GenerationOutput, MusicGen

Make = Callable[..., GenerationOutput]  # a method of the model, its other arguments given

STREAM_CHUNK = 1.0  # seconds


def partial_folder(output: str | os.PathLike) -> Path:
    """Where a long generation keeps what it has: beside the output."""
    return Path(f"{output}.partial")


def to_files(
    make: Make,
    model: MusicGen,
    files: list[Path],
    *,
    folder: Path,
    go_on: bool,
    duration: float,
    strategy: str,
) -> GenerationOutput:
    """Makes music of any length, writing as it goes; the files appear at the end.

    Args:
      make: generates, given `checkpoint` and `on_audio`.
      model: that it is a method of.
      files: one per clip.
      folder: keeps finished windows and samples until the files are there.
      go_on: whether to go on from what is there.
      duration: seconds, checked.
      strategy: of the level.

    Returns:
      What `make` returns: codes, no audio. The folder is still there, see `resume.discard`.

    Raises:
      UserError: something was left by another run and is not to be gone on with, as `make`, or a
        file cannot be written.
    """
    if not go_on and folder.exists():  # hours of work, perhaps
        raise UserError(
            f"{folder} is left of a generation that was cut off: add --resume to go on with it, or "
            "delete it"
        )
    if go_on and not check_ours(folder):
        print(f"musicgen-jax: no {folder}: starting at the beginning", file=sys.stderr)
    growing = [
        GrowingFile(
            file,
            model.audio_channels,
            model.sample_rate,
            strategy,
            samples=int(duration * model.sample_rate),
            aside=folder / f"audio-{i}.f32",
        )
        for i, file in enumerate(files)
    ]

    def write(audio: np.ndarray) -> None:
        for file, clip in zip(growing, audio, strict=True):
            file.write(clip)

    try:
        out = make(checkpoint=folder, on_audio=write)
    except KeyboardInterrupt:
        print(f"musicgen-jax: {folder} is kept: --resume goes on from there", file=sys.stderr)
        raise
    for file in growing:
        file.finish()
    return out


def to_pipe(make: Make, model: MusicGen, target: str) -> None:
    """Writes raw PCM while the music is made: 16 bit, little-endian, channels interleaved.

    The level cannot follow the loudness of music that is still to come: it stays as the codec
    gives it, cut at -1 dBFS. A reader that goes away ends it without a word.

    Args:
      make: generates one clip, given `on_audio` and `chunk_seconds`.
      model: that it is a method of.
      target: "-" for stdout, or a file.
    """
    if target == "-" and sys.stdout.isatty():
        raise UserError("--stream - writes samples to stdout: send it to a player or a file")
    channels = model.audio_channels
    try:
        with contextlib.ExitStack() as stack:
            pipe = sys.stdout.buffer
            if target != "-":
                pipe = stack.enter_context(open(target, "wb"))
            print(
                f"raw PCM: s16le, {model.sample_rate} Hz, {channels} "
                f"channel{'s' if channels > 1 else ''}",
                file=sys.stderr,
                flush=True,
            )

            def write(audio: np.ndarray) -> None:
                pipe.write(to_pcm(audio[0]))
                pipe.flush()

            make(on_audio=write, chunk_seconds=STREAM_CHUNK)
    except BrokenPipeError:
        if target == "-":  # else Python would try once more at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error


def to_pcm(audio: np.ndarray) -> bytes:
    """Audio float [C, W] as s16le, channels interleaved, cut at -1 dBFS."""
    cut = apply_level(np.asarray(audio, np.float32), "clip", 0.0)
    return np.round(cut * 2.0**15).astype("<i2").T.tobytes()
