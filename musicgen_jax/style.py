"""A style on its way to the language model: any audio, an excerpt of it, drawn by the seed.

Every clip is heard for itself. audiocraft draws one place for all clips of a batch, padded to the
longest, so that there a short one may be heard in the silence behind its end.
"""

from collections.abc import Sequence

import jax
import numpy as np

from musicgen_jax import arguments
from musicgen_jax.audio import convert_audio
from musicgen_jax.conditioning.style import excerpt
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError


class Styles:
    """The styles of a batch, as excerpts that MERT hears in each window of a piece.

    Args:
      clips: B times float [C, W] at `sample_rate`, checked, or None for no style.
      sample_rate: in Hz.
      config: of the model.
      keys: [B] typed keys, those that the tokens are drawn with: each draws where its excerpt
        begins, and does so apart from the tokens.
      duration: seconds of the piece. Of a longer one than the model sees at once each window hears
        an excerpt of its own, from the clip as it moves on with the windows.
      excerpt_length: seconds.

    Raises:
      UserError: a clip is shorter than the excerpt, or the excerpt is too short or too long.
    """

    def __init__(
        self,
        clips: Sequence[np.ndarray | None],
        sample_rate: int,
        *,
        config: MusicGenConfig,
        keys: jax.Array,
        duration: float,
        excerpt_length: float,
    ):
        assert config.mert is not None
        self.given = np.array([clip is not None for clip in clips])
        self._keys, self._rate = keys, config.sample_rate
        self._length = _excerpt_samples(excerpt_length, config)
        self._window = None
        if duration > config.max_duration:
            self._window = int(config.max_duration * config.sample_rate)
        self._clips = [
            (i, convert_audio(clip, sample_rate, config.sample_rate, 1)[0])
            for i, clip in enumerate(clips)
            if clip is not None
        ]
        for i, clip in self._clips:
            if len(clip) < self._length:
                raise UserError(
                    f"the style of clip {i} lasts {len(clip) / self._rate:.2f} s, less than the "
                    f"excerpt of {excerpt_length:g} s: give a longer one, or a shorter "
                    "excerpt_length"
                )

    def excerpts_at(self, offset: float) -> np.ndarray:
        """What is heard in the window that begins `offset` seconds into the piece.

        Returns:
          float32 [b, W] at the model's rate, b being the number of clips that are given.
        """
        first = int(offset * self._rate)
        return np.stack(
            [
                excerpt(clip, self._length, self._keys[i], offset=first, window=self._window)
                for i, clip in self._clips
            ]
        )


def check_styles(
    style: arguments.Audio | Sequence[arguments.Audio | None], sample_rate: int, batch: int
) -> list[np.ndarray | None]:
    """One checked clip, float32 [C, W], or None for each of `batch` descriptions."""
    clips = arguments.check_clips(style, sample_rate, "style")
    if len(clips) not in (1, batch):
        raise UserError(
            f"{len(clips)} styles for {batch} descriptions: give one for each, or one for all"
        )
    return clips * (batch if len(clips) == 1 else 1)


def check_eval_q(eval_q: int, n_q: int) -> None:
    """How many of the conditioner's `n_q` codebooks are used."""
    if not arguments.is_int(eval_q) or not 1 <= eval_q <= n_q:
        raise UserError(f"eval_q must be an integer from 1 to {n_q}, got {eval_q!r}")


def _excerpt_samples(seconds: float, config: MusicGenConfig) -> int:
    assert config.mert is not None
    if not arguments.is_number(seconds) or not 0 < seconds <= config.max_duration:
        raise UserError(
            f"excerpt_length must be more than 0 and at most {config.max_duration:g} seconds, "
            f"got {seconds!r}"
        )
    length = int(seconds * config.sample_rate)
    if not config.mert.num_frames(length * config.mert.sample_rate // config.sample_rate):
        raise UserError(f"excerpt_length {seconds:g} is too short for a single token of style")
    return length
