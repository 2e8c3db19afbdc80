"""Audio that comes with a request: a melody or style to follow, and audio to continue."""

import dataclasses

import numpy as np

from musicgen_jax import audio
from musicgen_jax.conditioning.melody import melodies_of, melody_conditions
from musicgen_jax.conditioning.style import DEFAULT_EVAL_Q, DEFAULT_EXCERPT, style_conditions
from musicgen_jax.conditioning.text import ConditionAt
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError
from musicgen_jax.generation.continuation import continuing
from musicgen_jax.generation.request import Request
from musicgen_jax.serving.http.asked import Asked
from musicgen_jax.serving.http.errors import invalid
from musicgen_jax.serving.http.fields import CONTINUED, FILES
from musicgen_jax.serving.http.settings import Settings
from musicgen_jax.serving.scheduler import Scheduler
from musicgen_jax.storage.loading import Parts

_WORDS = {"melody": "melody", "style": "style", CONTINUED: "audio to continue"}


def with_files(
    scheduler: Scheduler, asked: Asked, files: list[tuple[str, bytes]], settings: Settings
) -> tuple[Asked, ConditionAt | None]:
    """The request with its files. Takes a while: call it in a thread.

    The length of a file is known from its header, before anything is decoded.

    Args:
      scheduler: will make the music.
      asked: what the rest of the form asks for.
      files: the files of a form by their names there: one to follow, one to continue, or both.
      settings: what is allowed.

    Returns:
      the request, which begins with the audio to continue; and the condition that follows a melody
      or a style, None without one.

    Raises:
      HTTPError: 400 for what is not audio, is too long or does not fit the model.
    """
    parts, condition_at = scheduler.parts, None
    names = tuple(name for name, _ in files)
    _check_names(names, parts.config)
    for name, data in files:
        longest = settings.upload_seconds
        if name == CONTINUED:
            longest = min(longest, parts.config.max_duration)
        try:
            samples, rate = audio.read_bytes(
                data, f"the {_WORDS[name]}", longest=longest, most=settings.upload_samples
            )
            if name == CONTINUED:
                with scheduler.turn:
                    request = continuing(parts, asked.request, samples[None], rate)
                asked = dataclasses.replace(asked, request=request)
            else:
                condition_at = _condition(parts, asked.request, name, samples, rate)
        except UserError as error:
            raise invalid(str(error), name, "invalid_audio") from error
    return dataclasses.replace(asked, files=names), condition_at


def warm_up(parts: Parts) -> None:
    """Compiles the programs for a melody or a style, so that they are not compiled later."""
    config = parts.config
    name = "melody" if config.lm.chroma_bins else "style" if config.lm.style else None
    if name is not None:
        samples = int((DEFAULT_EXCERPT + 1) * config.sample_rate)
        noise = np.random.default_rng(0).normal(size=(1, samples)).astype(np.float32)
        request = Request(config=config, descriptions=["a"], duration=config.max_duration)
        _condition(parts, request, name, noise, config.sample_rate)(0.0, request.texts)


def _check_names(names: tuple[str, ...], config: MusicGenConfig) -> None:
    """Refuses unknown files, files that this model does not take, and too many files."""
    for number, name in enumerate(names):
        if name not in FILES:
            raise invalid(
                f"there is no file {name[:60]!a}: use {', '.join(FILES)}",
                name[:100],
                "unknown_field",
            )
        if name not in taken_by(config):
            raise invalid(f"{config.name or 'this model'} takes no {name}", name)
        if any((name == CONTINUED) == (other == CONTINUED) for other in names[:number]):
            raise invalid("send at most one file to follow and one to continue", name)


def heard(data: bytes, config: MusicGenConfig, settings: Settings) -> np.ndarray:
    """The melody of a sound file: the loudest pitch class of each frame, as the model takes it.

    Args:
      data: the file.
      config: of a melody model.
      settings: what is allowed.

    Returns:
      int [T], C being 0, for the length of the audio.

    Raises:
      UserError: the file is not audio, or too long.
    """
    samples, rate = audio.read_bytes(
        data, "the melody", longest=settings.upload_seconds, most=settings.upload_samples
    )
    seconds = samples.shape[1] / rate
    melodies = melodies_of(config, samples, rate, separate=False, duration=max(seconds, 1.0))
    hop = config.lm.chroma_hop / config.sample_rate
    per_window = melodies.num_frames - 1  # the last frame is the first one of the next window
    frames = max(1, round(seconds / hop))
    windows = [
        melodies.chroma_at(n * per_window * hop)[0][0, :-1] for n in range(-(-frames // per_window))
    ]
    return np.concatenate(windows).argmax(axis=1)[:frames]


def taken_by(config: MusicGenConfig) -> list[str]:
    """The names of the files that a model takes."""
    takes = {"melody": bool(config.lm.chroma_bins), "style": config.lm.style is not None}
    return [name for name in FILES if takes.get(name, True)]


def _condition(
    parts: Parts, request: Request, name: str, samples: np.ndarray, rate: int
) -> ConditionAt:
    duration = request.seconds
    if name == "melody":
        melodies = melodies_of(parts.config, samples, rate, separate=False, duration=duration)
        return melody_conditions(parts, 1, melodies)
    return style_conditions(
        parts,
        1,
        samples,
        rate,
        eval_q=DEFAULT_EVAL_Q,
        excerpt_length=DEFAULT_EXCERPT,
        duration=duration,
        keys=request.keys,
    )
