"""A style on its way to the language model: any audio, an excerpt of it, drawn by the seed.

Every clip is heard for itself. audiocraft draws one place for all clips of a batch, padded to the
longest, so that there a short one may be heard in the silence behind its end.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.audio import convert_audio
from musicgen_jax.conditioning import arguments
from musicgen_jax.conditioning.arguments import Audio
from musicgen_jax.conditioning.excerpt import DEFAULT_EXCERPT, excerpt
from musicgen_jax.conditioning.resample import resample_frac
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError, is_int, is_number
from musicgen_jax.generation.decode import example_keys
from musicgen_jax.generation.piece import (
    DEFAULT_DURATION,
    GenerationOutput,
    generate_piece,
    num_frames,
)
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.mert import Mert
from musicgen_jax.nn.style_conditioner import DEFAULT_EVAL_Q, StyleConditioner
from musicgen_jax.runtime import sharding

if TYPE_CHECKING:
    from musicgen_jax.model import MusicGen


def generate_with_style(
    model: "MusicGen",
    descriptions: Sequence[str | None] | None,
    style: Audio | Sequence[Audio | None],
    style_sample_rate: int,
    *,
    eval_q: int = DEFAULT_EVAL_Q,
    excerpt_length: float = DEFAULT_EXCERPT,
    cfg_coef: float = 3.0,
    cfg_coef_beta: float | None = None,
    duration: float = DEFAULT_DURATION,
    seed: int | Sequence[int] = 0,
    **settings,
) -> GenerationOutput:
    """Generates music in the style of given audio, and after a description.

    Of the audio one short excerpt is heard. Where it begins is drawn by the seed of the clip,
    anew in every window of a piece longer than `max_duration`; to choose it yourself, give
    audio that is as long as the excerpt. Silence is a style like any other and does not stand
    for none, which is None.

    Args:
      model: a style model.
      descriptions: B texts, None or "" for a clip that only the style shapes; by default none
        for any clip.
      style: float [C, W] or [1, C, W] for all clips, [B, C, W], or a list with one array
        [C, W] or None (no style) per clip; at least as long as the excerpt. Clips do not touch
        each other.
      style_sample_rate: samples per second of `style`, any.
      eval_q: codebooks that describe the style, 1 to 6 in the official model: the fewer, the
        freer the music.
      excerpt_length: seconds; the official model was trained with 1.5 to 4.5.
      cfg_coef: strength of guidance, as in `generate`.
      cfg_coef_beta: strength of the text beside a style (double guidance, which takes half as
        long again). audiocraft advises 5 where both are given, within 1 to 9, and otherwise
        None: ordinary guidance, under which a style drowns the text.
      duration: seconds, as in `generate`.
      seed: as in `generate`.
      **settings: the other keyword arguments of `generate`.

    Raises:
      UserError: this model takes no style, the style is no audio or shorter than the excerpt,
        or as `generate`.
    """
    if descriptions is None:
        clips = arguments.check_clips(style, style_sample_rate, "style")
        descriptions = [None] * len(clips)
    texts = arguments.check_descriptions(descriptions)
    num_frames(model.config, duration)
    condition_at = _conditions(
        model, texts, style, style_sample_rate, eval_q, excerpt_length, duration, seed
    )
    return generate_piece(
        model.lm,
        model.encodec,
        model.config,
        texts,
        condition_at,
        duration=duration,
        seed=seed,
        cfg_coef=cfg_coef,
        cfg_coef_beta=cfg_coef_beta,
        **settings,
    )


def style_condition(
    model: "MusicGen",
    descriptions: Sequence[str | None],
    style: Audio | Sequence[Audio | None],
    style_sample_rate: int,
    *,
    eval_q: int = DEFAULT_EVAL_Q,
    excerpt_length: float = DEFAULT_EXCERPT,
    seed: int | Sequence[int] = 0,
) -> Condition:
    """What the language model is told of text and style: B rows.

    The arguments are those of `generate_with_style`, whose excerpts these are in pieces of up
    to `max_duration`.
    """
    texts = arguments.check_descriptions(descriptions)
    seconds = model.max_duration
    return _conditions(
        model, texts, style, style_sample_rate, eval_q, excerpt_length, seconds, seed
    )(0.0)


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
    style: Audio | Sequence[Audio | None], sample_rate: int, batch: int
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
    if not is_int(eval_q) or not 1 <= eval_q <= n_q:
        raise UserError(f"eval_q must be an integer from 1 to {n_q}, got {eval_q!r}")


def excerpt_samples(seconds: float, config: MusicGenConfig) -> int:
    """How many samples of the model's rate an excerpt has.

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


# --- What the language model is told --------------------------------------------------------------


def _conditions(
    model: "MusicGen",
    texts: Sequence[str | None],
    style: Audio | Sequence[Audio | None],
    sample_rate: int,
    eval_q: int,
    excerpt_length: float,
    duration: float,
    seed: int | Sequence[int],
) -> Callable[[float], Condition]:
    """The condition of every window: the text once, an excerpt of the style for each."""
    if model.config.lm.style is None:
        raise UserError(f"{model.name or 'this model'} takes no style: use facebook/musicgen-style")
    check_eval_q(eval_q, model.config.lm.style.n_q)
    styles = Styles(
        check_styles(style, sample_rate, len(texts)),
        int(sample_rate),
        config=model.config,
        keys=example_keys(arguments.check_seed(seed, len(texts)), len(texts)),
        duration=duration,
        excerpt_length=excerpt_length,
    )
    text = functools.cache(lambda: model.text_condition(texts))
    if not styles.given.any():
        return lambda offset: text()

    def condition_at(offset: float) -> Condition:
        assert model.mert is not None
        excerpts = styles.excerpts_at(offset)
        stage = partial(mert_features, model.mert, sample_rate=model.sample_rate)
        features = sharding.by_rows(model.mesh, stage, excerpts)
        return _with_style(
            model.lm.style_conditioner, text(), features, styles.given, eval_q=eval_q
        )

    return condition_at


@partial(jax.jit, static_argnames="sample_rate")
def mert_features(mert: Mert, excerpts: jax.Array, *, sample_rate: int) -> jax.Array:
    """What MERT hears: float `[B, W]` at `sample_rate` to `[B, T, E]`."""
    return mert(resample_frac(excerpts, sample_rate, mert.config.sample_rate))


@partial(jax.jit, static_argnames="eval_q")
def _with_style(
    conditioner: StyleConditioner,
    text: Condition,
    features: jax.Array,
    given: jax.Array,
    *,
    eval_q: int,
) -> Condition:
    """`features` [b, T, E] of those rows that are `given` [B]; the others stay null."""
    tokens = conditioner(features, eval_q)  # [b, P, D]
    row = jnp.maximum(jnp.cumsum(given) - 1, 0)
    prefix = jnp.where(given[:, None, None], tokens[row], 0)
    mask = jnp.broadcast_to(given[:, None], prefix.shape[:2])
    return Condition(text.text, Embedded(prefix, mask))
