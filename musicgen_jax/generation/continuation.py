"""Music that goes on from given audio."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from musicgen_jax.conditioning import arguments
from musicgen_jax.errors import UserError
from musicgen_jax.generation.piece import (
    DEFAULT_DURATION,
    GenerationOutput,
    check_prompt,
    num_frames,
)

if TYPE_CHECKING:
    from musicgen_jax.model import MusicGen

_SILENCE = 1e-4  # a prompt whose peak stays below -80 dBFS holds nothing to continue


def generate_continuation(
    model: "MusicGen",
    prompt: np.ndarray | jax.Array,
    prompt_sample_rate: int,
    descriptions: Sequence[str | None] | None = None,
    *,
    duration: float = DEFAULT_DURATION,
    **settings,
) -> GenerationOutput:
    """Continues audio. The output begins with the prompt, as the codec reconstructs it.

    Args:
      model: the model.
      prompt: float [C, W] or [B, C, W], B being 1 or the number of descriptions. Another
        sample rate is resampled; more channels than the model's are averaged into mono, and
        mono is copied to both of a stereo model's.
      prompt_sample_rate: samples per second of `prompt`.
      descriptions: B texts; by default none for any clip.
      duration: seconds of the output, the prompt included; longer than the prompt.
      **settings: the other keyword arguments of `generate`.

    Raises:
      UserError: the prompt is no audio, silent or too long, or as `generate`.
    """
    audio = arguments.check_audio(prompt, prompt_sample_rate, "prompt")
    if np.abs(audio).max() < _SILENCE:
        raise UserError("the prompt is silent: there is nothing to continue")
    texts = arguments.check_descriptions(
        [None] * len(audio) if descriptions is None else descriptions
    )
    # Before the codec runs: a song of ten minutes would first fill the memory.
    frames = math.ceil(audio.shape[2] / prompt_sample_rate * model.frame_rate - 1e-6)
    check_prompt(model.config, frames, num_frames(model.config, duration))
    codes = model.encode(audio, prompt_sample_rate)
    return model.generate(texts, duration=duration, prompt_codes=codes, **settings)
