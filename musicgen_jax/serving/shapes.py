"""The shapes of a clip's program. They follow from the request and the model alone.

If they depended on anything else, such as the other clips, that would change the clip's rounding.
"""

import dataclasses

from musicgen_jax.conditioning.chroma import chroma_frames
from musicgen_jax.conditioning.style import style_length
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError, is_int
from musicgen_jax.generation.program_name import ProgramName
from musicgen_jax.generation.request import Request, window_frames
from musicgen_jax.generation.settings import MAX_SLOTS
from musicgen_jax.runtime import sharding
from musicgen_jax.runtime.tuning import Tuning
from musicgen_jax.storage.loading import Parts

TEXT_TOKENS = 64  # of the shortest padded description
STYLE_SECONDS = 5.0  # of the longest excerpt; the official model was trained with up to 4.5


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """The lengths that all slots of an engine are padded to.

    Attributes:
      text: tokens of a description: 64, 128, 256 and so on.
      steps: length of the cache.
      negatives: whether the rows of guidance have texts too, where they would otherwise be skipped.
    """

    text: int
    steps: int
    negatives: bool = False


def shape_of(parts: Parts, request: Request) -> Shape:
    """The shape for a clip."""
    ids, mask = parts.tokenizer(request.every_text)
    tokens = ids.shape[1] if mask.any() else 0
    text = max(TEXT_TOKENS, 1 << (tokens - 1).bit_length() if tokens else 0)
    frames = request.windows[0].length
    steps = _cache_lengths(parts.config, parts.lm.tuning, frames, text)[-1]
    return Shape(text, steps, request.has_negatives and parts.lm.skip_null_rows)


def shapes_up_to(parts: Parts, frames: int, text: int, *, negatives: bool = False) -> list[Shape]:
    """The shapes of all clips whose windows have up to `frames` frames and whose texts are short.

    Args:
      parts: of the model.
      frames: of the longest window.
      text: tokens of the longest description.
      negatives: whether clips may have negative descriptions.
    """
    texts = [TEXT_TOKENS]
    while texts[-1] < text:
        texts.append(2 * texts[-1])
    return [
        Shape(text, steps, more)
        for more in ((False, True) if negatives and parts.lm.skip_null_rows else (False,))
        for text in texts
        for steps in _cache_lengths(parts.config, parts.lm.tuning, frames, text)
    ]


def _cache_lengths(config: MusicGenConfig, tuning: Tuning, frames: int, text: int) -> list[int]:
    """The lengths of caches for windows of up to `frames` frames, in steps.

    The last one is for windows of `frames` frames: the first of `Tuning.slot_lengths` that is long
    enough, or else the length of the model's window. With the prefix it is a multiple of 16: odd
    widths are slow, and not reproducible on every device.
    """
    delay = max(config.lm.delays)
    longest = window_frames(config) + delay
    lengths = [n for n in tuning.slot_lengths if n < longest] + [longest]
    prefix = prefix_length(config, text)
    needed = sum(n < frames + delay for n in lengths) + 1
    return [-(-(prefix + n) // 16) * 16 - prefix for n in lengths[:needed]]


def prefix_length(config: MusicGenConfig, text: int) -> int:
    """The cache slots before the tokens: for the audio, and for the text if it is prepended."""
    return audio_length(config) + (text if config.lm.conditioning == "prepend" else 0)


def audio_length(config: MusicGenConfig) -> int:
    """The vectors of a melody or a style in a slot; 0 in a text model."""
    if config.lm.chroma_bins:
        return chroma_frames(config)
    return style_length(min(STYLE_SECONDS, config.max_duration), config) if config.lm.style else 0


def name_program(parts: Parts, slots: int, shape: Shape) -> ProgramName:
    """Names the program of N slots of a shape.

    Raises:
      UserError: `slots` is not a possible number of slots.
    """
    if not is_int(slots) or not 1 <= slots <= MAX_SLOTS:
        raise UserError(f"slots must be an integer from 1 to {MAX_SLOTS}, got {slots!r}")
    if parts.mesh is not None and slots % (data := parts.mesh.shape[sharding.DATA]):
        raise UserError(
            f"slots must be a multiple of {data}, the parts of the data axis, got {slots}"
        )
    return ProgramName.of(
        parts.lm,
        parts.mesh,
        clips=slots,
        slots=True,
        steps=shape.steps,
        text=shape.text,
        negatives=shape.negatives,
    )
