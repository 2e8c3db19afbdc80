"""Chroma similarity: in how many frames two clips have the same loudest pitch class.

audiocraft's `ChromaCosineSimilarityMetric` compares one-hot vectors by their cosine, which is 1
where the loudest of the twelve classes agrees and 0 elsewhere. Silence counts as C. Independent
music agrees in about one frame of twelve.
"""

from collections.abc import Sequence

import numpy as np

from musicgen_jax.audio import convert_channels
from musicgen_jax.audio.level import checked
from musicgen_jax.conditioning.chroma import HOP, WINDOW, loudest_pitches
from musicgen_jax.conditioning.resample import resample_frac
from musicgen_jax.errors import UserError

SAMPLE_RATE = 32000
_FRAMES = 80  # at once; 10 s have 79


def chroma_cosine(
    generated: np.ndarray | Sequence[np.ndarray],
    reference: np.ndarray | Sequence[np.ndarray],
    sample_rate: int,
) -> float:
    """The share of frames that agree, over all frames of all pairs: long clips weigh more.

    Args:
      generated: float [C, W], or a list of them.
      reference: float [C, W], or as many as there are of `generated`. If the clips of a pair differ
        in length, the frames of the shorter one count.
      sample_rate: of all of them, in Hz.

    Raises:
      UserError: there are no pairs, or a clip is empty or not finite.
    """
    ours, theirs = _as_list(generated), _as_list(reference)
    if len(ours) != len(theirs) or not ours:
        raise UserError(f"clips must come in pairs, got {len(ours)} and {len(theirs)}")
    pairs = [
        agreement(loudest_classes(a, sample_rate), loudest_classes(b, sample_rate))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return sum(same for same, _ in pairs) / sum(frames for _, frames in pairs)


def agreement(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Compares the results of `loudest_classes` for two clips.

    Returns:
      how many frames agree, and how many there are in the shorter clip.
    """
    frames = min(len(first), len(second))
    return int((first[:frames] == second[:frames]).sum()), frames


def loudest_classes(clip: np.ndarray, sample_rate: int) -> np.ndarray:
    """The loudest pitch class of each frame.

    Args:
      clip: float [C, W]. One shorter than a window (0.5 s) is padded with zeros on both sides.
      sample_rate: in Hz.

    Returns:
      uint8 [ceil(W' / 4096)] for W' samples at 32 kHz; 0 is C, and silence.

    Raises:
      UserError: the clip is empty or not finite.
    """
    mono = _mono(clip, sample_rate)
    frames = -(-len(mono) // HOP)
    missing = max(WINDOW - len(mono), 0)
    mono = np.pad(mono, (missing // 2, missing - missing // 2))
    mono = np.pad(mono, WINDOW // 2, mode="reflect")
    # In blocks, so that one compiled program serves all lengths and memory does not grow with them.
    block = (_FRAMES - 1) * HOP + WINDOW
    mono = np.pad(mono, (0, block))
    starts = range(0, frames * HOP, _FRAMES * HOP)
    found = [
        np.asarray(loudest_pitches(mono[i : i + block], sample_rate=SAMPLE_RATE, hop=HOP))
        for i in starts
    ]
    return np.concatenate(found)[:frames]


def _mono(clip: np.ndarray, sample_rate: int) -> np.ndarray:
    clip = checked(clip)
    if not np.isfinite(clip).all():
        raise UserError("the audio contains samples that are NaN or infinite")
    return np.asarray(resample_frac(convert_channels(clip, 1)[0], sample_rate, SAMPLE_RATE))


def _as_list(clips: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    return [clips] if getattr(clips, "ndim", 0) == 2 else list(clips)  # type: ignore[list-item]
