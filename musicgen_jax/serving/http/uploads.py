"""Audio that comes with a request, and the condition that it becomes."""

import numpy as np

from musicgen_jax import audio
from musicgen_jax.conditioning.melody import melody_conditions
from musicgen_jax.conditioning.style import DEFAULT_EVAL_Q, DEFAULT_EXCERPT, style_conditions
from musicgen_jax.conditioning.text import ConditionAt
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError
from musicgen_jax.generation.request import Request
from musicgen_jax.serving.http.errors import invalid
from musicgen_jax.serving.http.fields import FILES
from musicgen_jax.serving.http.settings import Settings
from musicgen_jax.storage.loading import Parts


def condition(
    parts: Parts, request: Request, files: list[tuple[str, bytes]], settings: Settings
) -> ConditionAt | None:
    """What the music follows next to its description. Takes a while: call it in a thread.

    The length of a file is known from its header, before anything is decoded.

    Args:
      parts: of the scheduler.
      request: of one clip.
      files: the files of a form by their names there.
      settings: what is allowed.

    Returns:
      the condition; None without a file.

    Raises:
      HTTPError: 400 for what is not audio, is too long or does not fit the model.
    """
    if not files:
        return None
    name, data = _only(files)
    _check_model(name, parts.config)
    try:
        samples, rate = audio.read_bytes(
            data, f"the {name}", longest=settings.upload_seconds, most=settings.upload_samples
        )
        return _condition(parts, request, name, samples, rate)
    except UserError as error:
        raise invalid(str(error), name, "invalid_audio") from error


def warm_up(parts: Parts) -> None:
    """Compiles what a melody or a style needs, so that it is not compiled later."""
    config = parts.config
    name = "melody" if config.lm.chroma_bins else "style" if config.lm.style else None
    if name is not None:
        samples = int((DEFAULT_EXCERPT + 1) * config.sample_rate)
        noise = np.random.default_rng(0).normal(size=(1, samples)).astype(np.float32)
        request = Request(config=config, descriptions=["a"], duration=config.max_duration)
        _condition(parts, request, name, noise, config.sample_rate)(0.0)


def _only(files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    name, data = files[0]
    if len(files) > 1:
        raise invalid("send one file: a melody or a style", files[1][0][:100])
    if name not in FILES:
        raise invalid(
            f"there is no file {name[:60]!a}: use {' or '.join(FILES)}",
            name[:100],
            "unknown_field",
        )
    return name, data


def _check_model(name: str, config: MusicGenConfig) -> None:
    if name == "continue_from":
        raise invalid(
            "the server does not continue audio yet: use `musicgen-jax generate --continue-from`",
            name,
            "not_implemented",
        )
    if not (config.lm.chroma_bins if name == "melody" else config.lm.style):
        raise invalid(f"{config.name or 'this model'} takes no {name}", name)


def _condition(
    parts: Parts, request: Request, name: str, samples: np.ndarray, rate: int
) -> ConditionAt:
    texts, duration = request.descriptions, request.duration
    if name == "melody":
        return melody_conditions(parts, texts, samples, rate, separate=False, duration=duration)
    return style_conditions(
        parts,
        texts,
        samples,
        rate,
        eval_q=DEFAULT_EVAL_Q,
        excerpt_length=DEFAULT_EXCERPT,
        duration=duration,
        keys=request.keys,
    )
