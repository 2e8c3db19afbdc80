"""Where the command line sends music: to files while it is made, or raw to a pipe."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from musicgen_jax.audio import GrowingFile
from musicgen_jax.audio.level import apply_level
from musicgen_jax.errors import UserError, user_error
from musicgen_jax.files import locked
from musicgen_jax.generation.program_name import ProgramName
from musicgen_jax.generation.window_store import check_ours
from musicgen_jax.model import GenerationOutput, MusicGen

Make = Callable[..., GenerationOutput]  # a method of the model with its other arguments bound

Comment = Callable[[int, ProgramName | None], str]

STREAM_CHUNK = 1.0  # seconds


def partial_folder(output: str | os.PathLike[str]) -> Path:
    """Where a long generation keeps its finished windows: next to the output."""
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
    comment: Comment,
) -> GenerationOutput:
    """Makes music of any length and writes it as it goes; the files appear at the end.

    Args:
      make: generates; takes `checkpoint` and `on_audio`.
      model: the model that `make` is a method of.
      files: one per clip.
      folder: holds finished windows and samples until the files are complete.
      go_on: whether to resume what is in the folder.
      duration: seconds, checked.
      strategy: how the level is set.
      comment: from the number of a clip and its program to the comment of its file.

    Returns:
      What `make` returns: codes, no audio. The folder is left for `window_store.discard`.

    Raises:
      UserError: another process is writing the same output, the folder is left over from another
        run and `go_on` is False, a file cannot be written, or as `make`.
    """
    with locked(folder, wait=False):
        return _to_files(make, model, files, folder, go_on, duration, strategy, comment)


def _to_files(
    make: Make,
    model: MusicGen,
    files: list[Path],
    folder: Path,
    go_on: bool,
    duration: float,
    strategy: str,
    comment: Comment,
) -> GenerationOutput:
    if not go_on and folder.exists():  # hours of work, perhaps
        raise UserError(
            f"{folder} is left over from an interrupted generation: add --resume to continue it, "
            "or delete it"
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
        print(f"musicgen-jax: {folder} is kept: --resume continues it", file=sys.stderr)
        raise
    for i, file in enumerate(growing):
        file.finish(comment(i, out.program))
    return out


def to_pipe(make: Make, model: MusicGen, target: str) -> None:
    """Writes raw PCM while the music is made: 16 bit, little-endian, channels interleaved.

    The level cannot depend on music that is not made yet: samples stay as the codec gives them,
    clipped at -1 dBFS. When the reader closes the pipe, generation ends without a message. A file
    that exists is overwritten when there is music, and not before.

    Args:
      make: generates one clip; takes `on_audio` and `chunk_seconds`.
      model: the model that `make` is a method of.
      target: "-" for stdout, or a file.

    Raises:
      UserError: stdout is a terminal, or the file cannot be written.
    """
    if target == "-" and sys.stdout.isatty():
        raise UserError("--stream - writes samples to stdout: pipe them to a player or a file")
    channels = model.audio_channels
    kind = f"s16le, {model.sample_rate} Hz, {channels} channel{'s' if channels > 1 else ''}"
    pipes: list[BinaryIO] = []  # one, once there is music
    try:
        with user_error("write", target), contextlib.ExitStack() as stack:

            def begin() -> BinaryIO:
                pipe = sys.stdout.buffer
                if target != "-":
                    Path(target).parent.mkdir(parents=True, exist_ok=True)
                    pipe = stack.enter_context(open(target, "wb"))
                print(f"raw PCM: {kind}", file=sys.stderr, flush=True)
                return pipe

            def write(audio: np.ndarray) -> None:
                if not pipes:
                    pipes.append(begin())
                pipes[0].write(to_pcm(audio[0]))
                pipes[0].flush()

            # Whoever reads a pipe waits until it is opened. It holds nothing that could be lost.
            if target != "-" and Path(target).exists() and not Path(target).is_file():
                pipes.append(begin())
            make(on_audio=write, chunk_seconds=STREAM_CHUNK)
    except UserError as error:
        if not isinstance(error.__cause__, BrokenPipeError):
            raise
        if target == "-":  # or Python would flush it at exit, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def player(sample_rate: int, channels: int) -> list[str]:
    """The command of a program that plays raw PCM from its stdin.

    Raises:
      UserError: there is none here.
    """
    commands = (
        ["aplay", "-q", "-t", "raw", "-f", "S16_LE", "-r", f"{sample_rate}", "-c", f"{channels}"],
        ["pacat", "--format=s16le", f"--rate={sample_rate}", f"--channels={channels}"],
        ["play", "-q", "-t", "raw", "-e", "signed", "-b", "16", "-r", f"{sample_rate}", "-c",
         f"{channels}", "-"],
        ["ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "-f", "s16le", "-ar",
         f"{sample_rate}", "-ch_layout", "stereo" if channels == 2 else "mono", "-i", "-"],
    )  # fmt: skip
    for name, *arguments in commands:
        if (path := shutil.which(name)) is not None:
            return [path, *arguments]
    names = ", ".join(name for name, *_ in commands)
    raise UserError(
        f"--play found none of {names}: install one, or write a file with --output or --stream"
    )


def to_player(make: Make, model: MusicGen) -> None:
    """Plays the music while it is made. When the player is closed, generation ends.

    Args:
      make: as in `to_pipe`.
      model: as in `to_pipe`.

    Raises:
      UserError: no player was found, or the player failed.
    """
    command = player(model.sample_rate, model.audio_channels)
    with (
        user_error("run", command[0]),
        subprocess.Popen(command, stdin=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        pipe = process.stdin

        def write(audio: np.ndarray) -> None:
            pipe.write(to_pcm(audio[0]))
            pipe.flush()

        with contextlib.suppress(BrokenPipeError):
            make(on_audio=write, chunk_seconds=STREAM_CHUNK)
            pipe.close()
    if process.returncode:
        raise UserError(
            f"{command[0]} failed with code {process.returncode}: is there a sound device?"
        )


def to_pcm(audio: np.ndarray) -> bytes:
    """Audio float [C, W] as s16le, channels interleaved, clipped at -1 dBFS."""
    cut = apply_level(np.asarray(audio, np.float32), "clip", 0.0)
    return np.round(cut * 2.0**15).astype("<i2").T.tobytes()
