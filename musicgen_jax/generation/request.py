"""A request for music: everything but the condition, checked once, when the request is made."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np

from musicgen_jax.conditioning.text import Texts, check_descriptions, check_negatives
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError, is_int, is_number
from musicgen_jax.generation.decode import example_keys
from musicgen_jax.generation.joins import check_join, overlap_frames
from musicgen_jax.generation.schedule import CueLike, Scene, Timeline, check_schedule
from musicgen_jax.generation.settings import (
    DEFAULT_DURATION,
    DEFAULT_SAMPLING,
    MAX_DURATION,
    MAX_SEED,
    Sampling,
)
from musicgen_jax.generation.windows import Layout

ENDLESS = 1 << 60  # frames


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """B clips to generate. Nothing below the public methods checks any of this again.

    Attributes:
      config: of the model.
      descriptions: B texts or None.
      negative_descriptions: B texts or None that guidance moves away from; None if there are none.
      schedule: the changes while the clips play, in order.
      duration: seconds of each clip, including the prompt; None for music without an end.
      seed: one for all clips, or one per clip.
      sampling: how tokens are drawn.
      prompt_codes: int32 [B, K, Tp], the beginning of each clip, or None. [1, K, Tp] is the
        beginning of all clips.
      extend_stride: seconds between the starts of two windows; None for 3/5 of the model's window.
      join: how windows are joined, "hard" or "crossfade".
      checkpoint: folder that keeps finished windows, or None.
      chunk_seconds: length of the stretches of audio that are wanted while the model still runs;
        None for all at the end of each window.
      first: the index of the first clip among those of one seed, see `clip`.
      followed: identifies the audio whose melody or style the clips follow, if there is any and a
        checkpoint.

    Raises:
      UserError: a value has the wrong type or is out of range; the message names it.
    """

    config: MusicGenConfig
    descriptions: Sequence[str | None]
    duration: float | None = DEFAULT_DURATION
    seed: int | Sequence[int] = 0
    sampling: Sampling = DEFAULT_SAMPLING
    prompt_codes: jax.Array | np.ndarray | None = None
    extend_stride: float | None = None
    join: str = "hard"
    checkpoint: str | os.PathLike[str] | None = None
    chunk_seconds: float | None = None
    first: int = 0
    negative_descriptions: Sequence[str | None] | None = None
    schedule: Sequence[CueLike] = ()
    followed: str | None = None

    def __post_init__(self) -> None:
        config, keep = self.config, functools.partial(object.__setattr__, self)
        keep("descriptions", check_descriptions(self.descriptions))
        if self.duration is not None:
            check_duration(config, self.duration)
        keep("seed", check_seed(self.seed, self.batch))
        check_sampling(config, self.sampling)
        negatives = check_negatives(self.negative_descriptions, self.batch)
        keep("negative_descriptions", negatives)
        if self.prompt_codes is not None:
            codes = check_codes(config, self.prompt_codes, "prompt_codes")
            check_prompt(config, codes.shape[2], self.frames)
            keep("prompt_codes", match_batch(codes, self.batch))
        check_join(self.join)
        _check_stride(config, self.extend_stride)
        _check_chunk(config, self.chunk_seconds)
        if self.checkpoint is not None and not isinstance(self.checkpoint, str | os.PathLike):
            raise UserError(f"checkpoint must be the path of a folder, got {self.checkpoint!r}")
        if self.endless and self.checkpoint is not None:
            raise UserError("checkpoint is for a piece with an end, not for duration None")
        keep("schedule", check_schedule(self.schedule))
        self.timeline()

    def with_prompt(self, codes: jax.Array | np.ndarray) -> "Request":
        """This request, with codes to continue."""
        return dataclasses.replace(self, prompt_codes=codes)

    def following(self, digest: Callable[[], str]) -> "Request":
        """This request, for clips that follow audio with this digest, which only a folder needs."""
        return self if self.checkpoint is None else dataclasses.replace(self, followed=digest())

    def clip(self, index: int) -> "Request":
        """One of the clips as a request of its own, which draws the same tokens."""
        one = slice(index, index + 1)
        shared = isinstance(self.seed, int)
        return dataclasses.replace(
            self,
            descriptions=self.descriptions[one],
            negative_descriptions=self.negative_descriptions and self.negative_descriptions[one],
            seed=self.seed if shared else self.seed[one],  # type: ignore[index]
            prompt_codes=None if self.prompt is None else self.prompt[one],
            first=self.first + index if shared else 0,
        )

    @property
    def batch(self) -> int:
        """B."""
        return len(self.descriptions)

    @property
    def every_text(self) -> list[str | None]:
        """All descriptions and negative descriptions, including those of the schedule."""
        texts = [scene.texts for scene in self.timeline().scenes]
        return [one for text in texts for one in (*text.descriptions, *(text.negatives or ()))]

    @property
    def has_negatives(self) -> bool:
        """Whether there is a negative description at any time."""
        return any(scene.texts.negatives for scene in self.timeline().scenes)

    @property
    def texts(self) -> Texts:
        """The texts that describe the clips."""
        negatives = self.negative_descriptions
        return Texts(tuple(self.descriptions), None if negatives is None else tuple(negatives))

    @property
    def endless(self) -> bool:
        """Whether the music has no end."""
        return self.duration is None

    @property
    def frames(self) -> int:
        """T, the whole frames of `duration`; more than anybody will hear if there is no end."""
        return ENDLESS if self.duration is None else int(self.duration * self.config.frame_rate)

    @property
    def seconds(self) -> float:
        """`duration` as a number."""
        return ENDLESS / self.config.frame_rate if self.duration is None else self.duration

    def timeline(self) -> Timeline:
        """Which settings hold when; a new timeline at each call, to which cues may be added."""

        def text_frame(frame: int) -> int | None:
            window = self.windows.drawn_from(frame)
            return None if window is None else window.start + window.prompt

        prepended = self.config.lm.conditioning == "prepend"
        timeline = Timeline(
            Scene(self.texts, self.sampling),
            self.schedule,  # type: ignore[arg-type]
            frame_rate=self.config.frame_rate,
            total=self.frames,
            text_frame=text_frame if prepended else None,
        )
        timeline.now = self.windows[0].prompt
        return timeline

    @property
    def prompt(self) -> np.ndarray | None:
        """The checked prompt codes, int32 [B, K, Tp] on the host, or None."""
        return None if self.prompt_codes is None else np.asarray(self.prompt_codes)

    @property
    def chunk_frames(self) -> int:
        """Frames of a stretch of audio, 0 for all at the end of each window."""
        if self.chunk_seconds is None:
            return 0
        return max(1, round(self.chunk_seconds * self.config.frame_rate))

    @functools.cached_property
    def keys(self) -> jax.Array:
        """[B] typed keys, one per clip."""
        return example_keys(self.seed, self.batch, self.first)

    @functools.cached_property
    def windows(self) -> Layout:
        """How the piece is laid out."""
        window, rate = window_frames(self.config), self.config.frame_rate
        stride = max(1, window * 3 // 5)
        if self.extend_stride is not None:
            stride = int(self.extend_stride * rate)
        return Layout(
            self.frames,
            window=window,
            stride=stride,
            prompt=0 if self.prompt_codes is None else self.prompt_codes.shape[2],
            overlap=overlap_frames(self.join, window, stride, rate),
        )


# --- Checks, also for values outside of a request -------------------------------------------------


def check_duration(config: MusicGenConfig, duration: float) -> None:
    """UserError unless `duration` is a number of seconds that can be generated."""
    if not is_number(duration) or not 0 < duration <= MAX_DURATION:
        raise UserError(
            f"duration must be more than 0 and at most {MAX_DURATION} seconds (a day), "
            f"got {duration!r}"
        )
    if int(duration * config.frame_rate) < 1:
        raise UserError(
            f"duration must be at least one frame, {1 / config.frame_rate:g} seconds, "
            f"got {duration!r}"
        )


def check_seed(seed: int | Sequence[int], batch: int) -> int | list[int]:
    """One seed, or one for each of `batch` clips, as Python integers."""
    if isinstance(seed, str) or not (is_int(seed) or isinstance(seed, Sequence | np.ndarray)):
        raise UserError(f"seed must be an integer or a list of integers, got {seed!r}")
    seeds = [seed] if is_int(seed) else list(seed)  # type: ignore[arg-type]
    for one in seeds:
        if not is_int(one) or not 0 <= one <= MAX_SEED:  # type: ignore[operator]
            raise UserError(f"a seed must be an integer from 0 to {MAX_SEED}, got {one!r}")
    if not is_int(seed) and len(seeds) != batch:
        raise UserError(f"{len(seeds)} seeds for {batch} clips: give one for each, or one integer")
    numbers = [int(one) for one in seeds]  # type: ignore[arg-type]
    return numbers[0] if is_int(seed) else numbers


def check_codes(config: MusicGenConfig, codes: jax.Array | np.ndarray, what: str) -> np.ndarray:
    """Codes as int32 [B, K, T] on the host; UserError if they are not codes of this model."""
    values = np.asarray(codes)
    K, card = config.lm.n_q, config.lm.card
    if values.ndim != 3 or values.shape[1] != K or not values.size:
        raise UserError(f"{what} must be [B, {K}, T], got the shape {list(values.shape)}")
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{what} must be integers, got {values.dtype}")
    if values.min() < 0 or values.max() >= card:
        raise UserError(
            f"{what} must be from 0 to {card - 1}, got {values.min()} to {values.max()}"
        )
    return values.astype(np.int32)


def match_batch(codes: np.ndarray, batch: int) -> np.ndarray:
    """Codes [B, K, T]; [1, K, T] is repeated for all clips."""
    if codes.shape[0] not in (1, batch):
        raise UserError(
            f"{codes.shape[0]} prompts for {batch} descriptions: give one for each, or one for all"
        )
    return np.broadcast_to(codes, (batch, *codes.shape[1:]))


def check_prompt(config: MusicGenConfig, prompt: int, total: int) -> None:
    """UserError if a prompt of `prompt` frames leaves nothing of `total` frames to generate."""
    seconds = prompt / config.frame_rate
    if prompt >= window_frames(config):
        raise UserError(
            f"the prompt lasts {seconds:.2f} s: it must be shorter than the model's window of "
            f"{config.max_duration:g} s; cut it"
        )
    if prompt >= total:
        raise UserError(
            f"the prompt lasts {seconds:.2f} s and leaves nothing of the duration of "
            f"{total / config.frame_rate:.2f} s, which includes it: raise the duration or cut the "
            "prompt"
        )


def window_frames(config: MusicGenConfig) -> int:
    """Frames of the model's window."""
    return int(config.max_duration * config.frame_rate)


def check_sampling(config: MusicGenConfig, sampling: Sampling) -> None:
    """UserError if a model of `config` cannot sample like this."""
    # The default is fine for a model with fewer codes too: it keeps all of them.
    most = max(config.lm.card, DEFAULT_SAMPLING.top_k)
    if sampling.top_k > most:
        raise UserError(f"top_k must be an integer from 0 (all) to {most}, got {sampling.top_k!r}")
    if sampling.cfg_coef_beta is not None and not config.lm.hears:
        raise UserError(
            "cfg_coef_beta is for models that take a melody or a style as well as a text"
        )


def _check_stride(config: MusicGenConfig, stride: float | None) -> None:
    shortest, longest = 1 / config.frame_rate, config.max_duration
    if stride is not None and not (is_number(stride) and shortest <= stride < longest):
        raise UserError(
            f"extend_stride must be at least one frame, {shortest:g} s, and less than "
            f"{longest:g} s, got {stride!r}"
        )


def _check_chunk(config: MusicGenConfig, seconds: float | None) -> None:
    longest = config.max_duration
    if seconds is not None and not (is_number(seconds) and 0 < seconds <= longest):
        raise UserError(
            f"chunk_seconds must be more than 0 and at most {longest:g}, got {seconds!r}"
        )
