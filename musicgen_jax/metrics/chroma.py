"""Chroma similarity: in how many frames two clips have the same loudest pitch class.

audiocraft's `ChromaCosineSimilarityMetric` compares one-hot vectors by their cosine, which is 1
where the loudest of the twelve classes agrees and 0 elsewhere. Silence counts as C. Independent
music agrees in about one frame of twelve.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from musicgen_jax.audio import convert_channels
from musicgen_jax.audio.level import checked
from musicgen_jax.conditioning.chroma import HOP, WINDOW, chromagram, frame_count
from musicgen_jax.conditioning.resample import resample_frac
from musicgen_jax.errors import UserError

SAMPLE_RATE = 32000


class Agreement(NamedTuple):
    """Frames of one pair of clips.

    Attributes:
      same: those with the same loudest pitch class.
      frames: all.
    """

    same: int
    frames: int


def chroma_cosine(
    generated: np.ndarray | Sequence[np.ndarray],
    reference: np.ndarray | Sequence[np.ndarray],
    sample_rate: int,
) -> float:
    """The share of frames that agree, over all frames of all pairs: long clips weigh more.

    Args:
      generated: float [C, W], or a list of them.
      reference: float [C, W], or as many as there are of `generated`. Where a pair has two lengths
        the shorter one counts.
      sample_rate: of all of them, in Hz.

    Raises:
      UserError: there are no pairs, or a clip is empty or not finite.
    """
    ours, theirs = _as_list(generated), _as_list(reference)
    if len(ours) != len(theirs) or not ours:
        raise UserError(f"clips must come in pairs, got {len(ours)} and {len(theirs)}")
    pairs = [agreement(a, b, sample_rate) for a, b in zip(ours, theirs, strict=True)]
    return sum(pair.same for pair in pairs) / sum(pair.frames for pair in pairs)


def agreement(generated: np.ndarray, reference: np.ndarray, sample_rate: int) -> Agreement:
    """Compares one pair, float [C, W] each."""
    clips = [_mono(clip, sample_rate) for clip in (generated, reference)]
    length = min(map(len, clips))
    frames = -(-length // HOP)
    first, second = (loudest_classes(clip[:length])[:frames] for clip in clips)
    return Agreement(int((first == second).sum()), frames)


def loudest_classes(clip: np.ndarray) -> np.ndarray:
    """The loudest pitch class of each frame, int [W // 4096 + 1]; 0 is C, and silence.

    Args:
      clip: float32 [W], mono at 32 kHz; one shorter than a window has zeros on both sides.
    """
    missing = max(WINDOW - len(clip), 0)
    clip = np.pad(clip, (missing // 2, missing - missing // 2))
    length, num_frames = len(clip), frame_count(len(clip))
    # Rounded up to seconds, so that clips of about one length share a compiled program.
    room = -(-length // SAMPLE_RATE) * SAMPLE_RATE
    chroma = chromagram(
        np.pad(clip, (0, room - length)),
        length,
        sample_rate=SAMPLE_RATE,
        num_frames=frame_count(room),
    )
    return np.argmax(np.asarray(chroma), axis=1)[:num_frames]


def _mono(clip: np.ndarray, sample_rate: int) -> np.ndarray:
    clip = checked(clip)
    if not np.isfinite(clip).all():
        raise UserError("the audio contains samples that are NaN or infinite")
    return np.asarray(resample_frac(convert_channels(clip, 1)[0], sample_rate, SAMPLE_RATE))


def _as_list(clips: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    return [clips] if getattr(clips, "ndim", 0) == 2 else list(clips)  # type: ignore[list-item]
