"""Compiling ahead of time: everything that a generation needs, without the generation.

The stages run as they do in `MusicGen.generate`, but the language model stops after the first
frame of a window, which takes all of its programs, and the codec decodes zeros. So what is compiled
is what will be asked for, down to the smallest program, and not a list kept beside the code.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from musicgen_jax.conditioning import arguments
from musicgen_jax.errors import UserError, is_int
from musicgen_jax.generation.decode import cache_lengths, example_keys, growth
from musicgen_jax.generation.joins import decode_windows
from musicgen_jax.generation.piece import DEFAULT_DURATION, Piece
from musicgen_jax.generation.windows import Window, generate_windows
from musicgen_jax.model import MusicGen
from musicgen_jax.nn.condition import Condition
from musicgen_jax.runtime.compile_cache import Compilations, counting

TOKENS = (16, 32)  # of most descriptions
MAX_BATCH = 1024
_MAX_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage made ready.

    Attributes:
      name: for people.
      counts: what that took.
    """

    name: str
    counts: Compilations


def warm_up(
    model: MusicGen,
    durations: Sequence[float] | None = None,
    *,
    batch: int = 1,
    tokens: Sequence[int] = TOKENS,
    use_sampling: bool = True,
    top_k: int = arguments.DEFAULT_TOP_K,
    top_p: float = 0.0,
    cfg_coef: float = 3.0,
    chunk_seconds: float | None = None,
) -> Iterator[Stage]:
    """Compiles what `MusicGen.generate` will need, stage by stage as the result is read.

    Numbers that are no shapes (seed, temperature, how strong the guidance is) need nothing of
    their own. What melody, style and audio prompts add is compiled when it is first used.

    Args:
      model: the model.
      durations: seconds of the clips to come. By default every length that the language model is
        compiled for, and of the codec, which is compiled for each duration, the default duration
        and the longest that takes one window.
      batch: B.
      tokens: how long descriptions may be, in tokens; lengths up to the next power of two from 16
        on share programs. 0 is a clip without description.
      use_sampling: as in `generate`.
      top_k: as in `generate`.
      top_p: as in `generate`; only whether it is used matters.
      cfg_coef: as in `generate`; only whether it is 1 matters.
      chunk_seconds: as in `MusicGen.stream`, None if the audio is to come at the end.

    Yields:
      What was made ready.

    Raises:
      UserError: an argument is out of range.
    """
    if not is_int(batch) or not 1 <= batch <= MAX_BATCH:
        raise UserError(f"batch must be from 1 to {MAX_BATCH}, got {batch!r}")
    if not all(is_int(count) and 0 <= count <= _MAX_TOKENS for count in tokens):
        raise UserError(f"tokens must be from 0 to {_MAX_TOKENS}, got {list(tokens)!r}")
    settings = {"use_sampling": use_sampling, "top_k": top_k, "top_p": top_p, "cfg_coef": cfg_coef}

    def lay_out(duration: float) -> Piece:
        parts = (model.lm, model.encodec, model.config, [None] * batch)
        return Piece(*parts, _never, duration=duration, chunk_seconds=chunk_seconds, **settings)

    rows = batch if cfg_coef == 1 else 2 * batch
    if durations is None:
        audio = [lay_out(duration) for duration in (DEFAULT_DURATION, model.max_duration)]
        language = _every_length(model, rows)
    else:
        audio = [lay_out(duration) for duration in durations]
        language = [each for duration in durations for each in _lengths(model, duration, rows)]
    for count in dict.fromkeys(tokens):
        with counting() as counts:
            condition = model.text_condition([_text(model, count)] * batch)
        yield Stage(f"text of {count} tokens", counts)
        for duration, slots in dict.fromkeys(language):
            piece = lay_out(duration)
            with counting() as counts:
                _language(model, piece, condition, settings | {"lengths": [slots]})
            yield Stage(f"language model, {_seconds(model, piece)}, {count} tokens", counts)
    for piece in audio:
        with counting() as counts:
            _codec(model, piece, batch, whole=chunk_seconds is None)
        yield Stage(f"codec, {_seconds(model, piece)}", counts)


def _every_length(model: MusicGen, rows: int) -> list[tuple[float, int]]:
    """A duration, in seconds, for each length that a cache may have within a window; and that."""
    delay = max(model.config.lm.delays)
    longest = int(model.max_duration * model.frame_rate)
    lengths = {*growth(model.lm, rows, longest + delay), *cache_lengths(longest + delay)}
    return [(_duration(model, min(n - delay, longest)), n) for n in sorted(lengths)]


def _lengths(model: MusicGen, duration: float, rows: int) -> list[tuple[float, int]]:
    """The lengths that its cache goes through, each behind a duration that ends in it."""
    delay = max(model.config.lm.delays)
    frames = int(min(duration, model.max_duration) * model.frame_rate)
    *shorter, last = growth(model.lm, rows, frames + delay)
    return [*((_duration(model, n - delay), n) for n in shorter), (duration, last)]


def _duration(model: MusicGen, frames: int) -> float:
    return (frames + 0.5) / model.frame_rate  # half: rounds down to the frame


def _text(model: MusicGen, tokens: int) -> str | None:
    """A text that is padded to as many tokens as one of `tokens` is."""
    if not tokens:
        return None
    text = "a"
    padded = max(16, 1 << (tokens - 1).bit_length())
    while model.tokenizer([text])[0].shape[1] <= padded // 2:
        text += " a"
    return text


def _language(model: MusicGen, piece: Piece, condition: Condition, settings: dict) -> None:
    """The first frame of the first, the second and the last window."""
    assert condition.text is not None
    batch = len(condition.text.mask)
    last = len(piece.windows) - 1
    for number in sorted({0, min(1, last), last}):
        codes = generate_windows(
            model.lm,
            lambda offset: condition,
            piece.windows,
            keys=example_keys(0, batch),
            prompt=None,
            frame_rate=model.frame_rate,
            chunk=1,
            store=_Finished(number, batch, model.config.lm.n_q),
            **settings,
        )
        next(window for window, _ in codes if window.number == number)


def _codec(model: MusicGen, piece: Piece, batch: int, *, whole: bool) -> None:
    """The way from codes to audio that the piece will go, over no more than two windows."""
    windows = piece.windows[:2]
    store = _Finished(len(windows), batch, model.config.lm.n_q)
    codes = [(window, store.zeros(window)) for window in windows]
    if whole and len(piece.windows) == 1:
        model.decode(codes[0][1]).block_until_ready()
        return
    channels = model.audio_channels
    for _ in decode_windows(model.encodec, windows, codes, channels=channels, block=piece.block):
        pass


class _Finished:
    """A `windows.Store` in which all windows before one are finished."""

    def __init__(self, number: int, batch: int, books: int):
        self.number, self.shape = number, (batch, books)

    def load(self, window: Window) -> np.ndarray | None:
        """Zeros of a finished window."""
        return self.zeros(window) if window.number < self.number else None

    def zeros(self, window: Window) -> np.ndarray:
        """What a window adds to the piece, int32 [B, K, t]."""
        given = window.prompt if window.number else 0
        return np.zeros((*self.shape, window.length - given), np.int32)

    def save(self, window: Window, codes: np.ndarray) -> None:
        """Keeps nothing."""


def _seconds(model: MusicGen, piece: Piece) -> str:
    return f"{piece.windows[-1].end / model.frame_rate:g} s"


def _never(offset: float) -> Condition:
    raise AssertionError("a piece that is only laid out was generated")
