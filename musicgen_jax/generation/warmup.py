"""Compiling ahead of time: everything that a generation needs, without the generation.

The stages run as in `MusicGen.generate`, but the language model stops after the first frame of a
window, which already uses all of its programs, and the codec decodes zeros. So this compiles
exactly what will be needed, down to the smallest program, and there is no list to keep up to date.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from musicgen_jax.conditioning.text import text_condition
from musicgen_jax.errors import UserError, is_int
from musicgen_jax.generation.decode import cache_growth
from musicgen_jax.generation.joins import decode_windows
from musicgen_jax.generation.piece import block_frames
from musicgen_jax.generation.plan import cache_lengths
from musicgen_jax.generation.request import Request, window_frames
from musicgen_jax.generation.settings import DEFAULT_DURATION, DEFAULT_SAMPLING, Sampling
from musicgen_jax.generation.windows import Window, generate_windows
from musicgen_jax.nn.condition import Condition
from musicgen_jax.nn.encodec import channels
from musicgen_jax.runtime.compile_cache import Compilations, counting
from musicgen_jax.storage.loading import Parts

TOKENS = (16, 32)  # of most descriptions
MAX_BATCH = 1024
_MAX_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage whose programs are compiled.

    Attributes:
      name: for people.
      counts: the programs compiled and loaded for it.
      done: stages that are finished with this one.
      total: of all stages.
    """

    name: str
    counts: Compilations
    done: int
    total: int


def warm_up(
    parts: Parts,
    durations: Sequence[float] | None = None,
    *,
    batch: int = 1,
    tokens: Sequence[int] = TOKENS,
    sampling: Sampling = DEFAULT_SAMPLING,
    chunk_seconds: float | None = None,
) -> Iterator[Stage]:
    """Compiles what `MusicGen.generate` will need, stage by stage as the result is read.

    Numbers that do not shape a program (seed, temperature, strength of guidance) need no program of
    their own. The programs for melodies, styles and audio prompts are compiled on first use.

    Args:
      parts: of the model.
      durations: seconds of the clips to come. Default: every length that the language model is
        compiled for. The codec is compiled for each duration: by default for the default duration
        and for the longest that takes one window.
      batch: B.
      tokens: how long descriptions may be, in tokens; lengths up to the next power of two, from 16
        on, share programs. 0 is a clip without a description.
      sampling: as in `MusicGen.generate`. It matters only whether `top_p` is used, and whether
        `cfg_coef` is 1.
      chunk_seconds: as in `MusicGen.stream`; None if the audio is to come at the end.

    Yields:
      Each stage after it is compiled.

    Raises:
      UserError: an argument is out of range.
    """
    if not is_int(batch) or not 1 <= batch <= MAX_BATCH:
        raise UserError(f"batch must be from 1 to {MAX_BATCH}, got {batch!r}")
    if not all(is_int(count) and 0 <= count <= _MAX_TOKENS for count in tokens):
        raise UserError(f"tokens must be from 0 to {_MAX_TOKENS}, got {list(tokens)!r}")

    def request(duration: float) -> Request:
        return Request(
            config=parts.config,
            descriptions=[None] * batch,
            duration=duration,
            sampling=sampling,
            chunk_seconds=chunk_seconds,
        )

    rows = batch if sampling.cfg_coef == 1 else 2 * batch
    if durations is None:
        audio = [request(seconds) for seconds in (DEFAULT_DURATION, parts.config.max_duration)]
        language = _every_length(parts, rows)
    else:
        audio = [request(seconds) for seconds in durations]
        language = [each for seconds in durations for each in _lengths(parts, seconds, rows)]
    texts, lengths = list(dict.fromkeys(tokens)), list(dict.fromkeys(language))
    total = len(texts) * (1 + len(lengths)) + len(audio)
    done = itertools.count(1)
    for count in texts:
        with counting() as counts:
            condition = text_condition(parts, [text_of_length(parts, count)] * batch)
        yield Stage(f"text of {count} tokens", counts, next(done), total)
        for duration, slots in lengths:
            piece = request(duration)
            with counting() as counts:
                _language(parts, piece, condition, slots)
            name = f"language model, {_seconds(piece)}, {count} tokens"
            yield Stage(name, counts, next(done), total)
    for piece in audio:
        with counting() as counts:
            _codec(parts, piece)
        yield Stage(f"codec, {_seconds(piece)}", counts, next(done), total)


def _every_length(parts: Parts, rows: int) -> list[tuple[float, int]]:
    """Every length that a cache may have within a window, and a duration in seconds for each."""
    delay, longest = max(parts.config.lm.delays), window_frames(parts.config)
    steps = longest + delay
    lengths = {*cache_growth(parts.lm, rows, steps), *cache_lengths(steps, parts.lm.tuning)}
    return [(_duration(parts, min(n - delay, longest)), n) for n in sorted(lengths)]


def _lengths(parts: Parts, duration: float, rows: int) -> list[tuple[float, int]]:
    """The lengths that the cache of a clip goes through, with a duration that ends in each."""
    delay = max(parts.config.lm.delays)
    frames = int(min(duration, parts.config.max_duration) * parts.config.frame_rate)
    *shorter, last = cache_growth(parts.lm, rows, frames + delay)
    return [*((_duration(parts, n - delay), n) for n in shorter), (duration, last)]


def _duration(parts: Parts, frames: int) -> float:
    return (frames + 0.5) / parts.config.frame_rate  # half: rounds down to the frame


def text_of_length(parts: Parts, tokens: int) -> str | None:
    """A text that is padded to the same length as one of `tokens` tokens."""
    if not tokens:
        return None
    text = "a"
    padded = parts.lm.tuning.text_length(tokens)
    while parts.tokenizer([text])[0].shape[1] <= padded // 2:
        text += " a"
    return text


def _language(parts: Parts, request: Request, condition: Condition, slots: int) -> None:
    """The first frame of the first, the second and the last window."""
    last = len(request.windows) - 1
    for number in sorted({0, min(1, last), last}):
        codes = generate_windows(
            parts.lm,
            lambda offset, texts: condition,
            request.timeline(),
            request.windows,
            keys=request.keys,
            prompt=None,
            frame_rate=parts.config.frame_rate,
            chunk=1,
            store=_Finished(number, request),
            lengths=[slots],
        )
        next(window for window, _ in codes if window.number == number)


def _codec(parts: Parts, request: Request) -> None:
    """The way from codes to audio that the piece will take, for at most two windows."""
    windows = request.windows.first(2)
    store = _Finished(len(windows), request)
    codes = [(window, store.zeros(window)) for window in windows]
    C = parts.config.audio_channels
    if request.chunk_seconds is None and len(request.windows) == 1:
        zeros = jnp.asarray(codes[0][1])
        channels.decode(parts.encodec, zeros, C, parts.mesh).block_until_ready()
        return
    for _ in decode_windows(parts.encodec, windows, codes, channels=C, block=block_frames(request)):
        pass


class _Finished:
    """A `windows.Store` in which all windows before one are finished."""

    def __init__(self, number: int, request: Request):
        self.number, self.shape = number, (request.batch, request.config.lm.n_q)

    def load(self, window: Window) -> np.ndarray | None:
        """Zeros for a finished window."""
        return self.zeros(window) if window.number < self.number else None

    def zeros(self, window: Window) -> np.ndarray:
        """The codes that a window adds to the piece, int32 [B, K, t]."""
        known = window.prompt if window.number else 0
        return np.zeros((*self.shape, window.length - known), np.int32)

    def save(self, window: Window, codes: np.ndarray) -> None:
        """Keeps nothing."""


def _seconds(request: Request) -> str:
    return f"{request.windows[-1].end / request.config.frame_rate:g} s"
