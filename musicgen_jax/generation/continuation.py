"""Music that begins with a user's audio: its codes become the prompt of a request."""

import math

import numpy as np

from musicgen_jax.audio import convert_audio
from musicgen_jax.errors import UserError
from musicgen_jax.generation.request import Request, check_prompt, match_batch
from musicgen_jax.nn.encodec import channels
from musicgen_jax.storage.loading import Parts

_SILENCE = 1e-4  # a prompt whose peak stays below -80 dBFS has nothing to continue


def continuing(parts: Parts, request: Request, audio: np.ndarray, sample_rate: int) -> Request:
    """The request with the codes of audio to continue. The codec compiles once per length.

    Args:
      parts: of the model.
      request: of B clips; its duration includes the audio.
      audio: float32 [B, C, W] or [1, C, W], checked; converted to the model's rate and channels.
      sample_rate: of `audio`, in Hz.

    Raises:
      UserError: the audio is silent, as long as the music or the model's window, or for another
        number of clips. These checks come before any computation: ten minutes of audio would fill
        the memory.
    """
    config = parts.config
    if np.abs(audio).max() < _SILENCE:
        raise UserError("the prompt is silent: there is nothing to continue")
    frames = math.ceil(audio.shape[2] / sample_rate * config.frame_rate - 1e-6)
    check_prompt(config, frames, request.frames)
    match_batch(np.empty((len(audio), 0, 0)), request.batch)
    to = config.sample_rate, config.audio_channels
    wav = np.stack([convert_audio(clip, int(sample_rate), *to) for clip in audio])
    return request.with_prompt(channels.encode(parts.encodec, wav, parts.mesh))
