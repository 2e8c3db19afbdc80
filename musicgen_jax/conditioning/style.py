"""A style on its way to the language model: audio, an excerpt chosen by the seed, MERT, tokens."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.audio import convert_audio
from musicgen_jax.conditioning.audio_input import Clips, check_clips, digest, one_for_each
from musicgen_jax.conditioning.excerpt import DEFAULT_EXCERPT, excerpt
from musicgen_jax.conditioning.resample import resample_frac
from musicgen_jax.conditioning.text import ConditionAt, Texts, text_conditions
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError, is_int, is_number
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.mert import Mert
from musicgen_jax.nn.style_conditioner import DEFAULT_EVAL_Q, StyleConditioner
from musicgen_jax.runtime import sharding
from musicgen_jax.storage.loading import Parts

__all__ = ["DEFAULT_EVAL_Q", "DEFAULT_EXCERPT", "Styles", "style_conditions", "style_digest"]


def style_conditions(
    parts: Parts,
    batch: int,
    style: Clips,
    sample_rate: int,
    *,
    eval_q: int,
    excerpt_length: float,
    duration: float,
    keys: jax.Array,
) -> ConditionAt:
    """The condition of every window of a piece: the text once, an excerpt of the style for each.

    Args:
      parts: of a style model.
      batch: B.
      style: as in `MusicGen.generate_with_style`.
      sample_rate: of `style`, in Hz.
      eval_q: as in `MusicGen.generate_with_style`.
      excerpt_length: as in `MusicGen.generate_with_style`.
      duration: seconds of the piece, checked.
      keys: [B] typed keys, see `Styles`.

    Raises:
      UserError: the model takes no style, or the style is not audio for these clips.
    """
    config = parts.config
    if config.lm.style is None or parts.mert is None or parts.lm.style_conditioner is None:
        raise UserError(
            f"{config.name or 'this model'} takes no style: use facebook/musicgen-style"
        )
    check_eval_q(eval_q, config.lm.style.n_q)
    clips = one_for_each(check_clips(style, sample_rate, "style"), batch, "styles")
    styles = Styles(
        clips,
        int(sample_rate),
        config=config,
        keys=keys,
        duration=duration,
        excerpt_length=excerpt_length,
    )
    text = text_conditions(parts)
    if not styles.has_style.any():
        return lambda offset, texts: text(texts)
    conditioner = parts.lm.style_conditioner
    features = partial(mert_features, parts.mert, sample_rate=config.sample_rate)

    def condition_at(offset: float, texts: Texts) -> Condition:
        heard = sharding.by_rows(parts.mesh, features, styles.excerpts_at(offset))
        return _with_style(conditioner, text(texts), heard, styles.has_style, eval_q=eval_q)

    return condition_at


def style_digest(style: Clips, sample_rate: int) -> str:
    """Identifies the audio of styles; the arguments are those of `style_conditions`."""
    return digest(check_clips(style, sample_rate, "style"), int(sample_rate))


class Styles:
    """The styles of a batch, as excerpts for MERT in each window of a piece.

    Each clip is processed on its own. audiocraft draws one position for all clips of a batch,
    padded to the longest, so there the excerpt of a short one may lie in the silence after its end.

    Args:
      clips: B times float [C, W] at `sample_rate`, checked, or None for no style.
      sample_rate: in Hz.
      config: of the model.
      keys: [B] typed keys, the same with which tokens are drawn. A separate stream of each key
        decides where the excerpt begins.
      duration: seconds of the piece. In a piece longer than the model's window, each window takes
        an excerpt of its own, from where the window begins.
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
        self.has_style = np.array([clip is not None for clip in clips])
        self._keys, self._rate = keys, config.sample_rate
        self._length = excerpt_samples(excerpt_length, config)
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
        """The excerpts for the window that begins `offset` seconds into the piece.

        Returns:
          float32 [b, W] at the model's rate; b is the number of clips that have a style.
        """
        first = int(offset * self._rate)
        return np.stack(
            [
                excerpt(clip, self._length, self._keys[i], offset=first, window=self._window)
                for i, clip in self._clips
            ]
        )


def check_eval_q(eval_q: int, n_q: int) -> None:
    """How many of the conditioner's `n_q` codebooks are used."""
    if not is_int(eval_q) or not 1 <= eval_q <= n_q:
        raise UserError(f"eval_q must be an integer from 1 to {n_q}, got {eval_q!r}")


def excerpt_samples(seconds: float, config: MusicGenConfig) -> int:
    """The number of samples in an excerpt, at the model's rate.

    Raises:
      UserError: it would be too short for a token, or longer than the model's window.
    """
    assert config.mert is not None
    if not is_number(seconds) or not 0 < seconds <= config.max_duration:
        raise UserError(
            f"excerpt_length must be more than 0 and at most {config.max_duration:g} seconds, "
            f"got {seconds!r}"
        )
    length = int(seconds * config.sample_rate)
    if not config.mert.num_frames(length * config.mert.sample_rate // config.sample_rate):
        raise UserError(f"excerpt_length {seconds:g} is too short for a single token of style")
    return length


def style_length(seconds: float, config: MusicGenConfig) -> int:
    """The largest number of vectors that an excerpt of `seconds` can give."""
    assert config.mert is not None
    assert config.lm.style is not None
    samples = math.ceil(seconds * config.mert.sample_rate)
    return -(-config.mert.num_frames(samples) // config.lm.style.ds_factor)


@partial(jax.jit, static_argnames="sample_rate")
def mert_features(mert: Mert, excerpts: jax.Array, *, sample_rate: int) -> jax.Array:
    """MERT's features of excerpts: float `[B, W]` at `sample_rate` to `[B, T, E]`."""
    return mert(resample_frac(excerpts, sample_rate, mert.config.sample_rate))


@partial(jax.jit, static_argnames="eval_q")
def _with_style(
    conditioner: StyleConditioner,
    text: Condition,
    features: jax.Array,
    has_style: jax.Array,
    *,
    eval_q: int,
) -> Condition:
    """Adds `features` [b, T, E] to the b rows where `has_style` [B]; the others stay null."""
    tokens = conditioner(features, eval_q)  # [b, P, D]
    row = jnp.maximum(jnp.cumsum(has_style) - 1, 0)
    vectors = jnp.where(has_style[:, None, None], tokens[row], 0)
    mask = jnp.broadcast_to(has_style[:, None], vectors.shape[:2])
    return dataclasses.replace(text, audio=Embedded(vectors, mask))
