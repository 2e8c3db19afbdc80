"""The CLAP score: how well clips fit their texts, by the embeddings of both."""

import numpy as np

from musicgen_jax.errors import UserError

_SMALLEST = 1e-8  # lower bound of a vector's length, as in audiocraft


def clap_score(audio: np.ndarray, text: np.ndarray) -> float:
    """The mean cosine of pairs of embeddings: audiocraft's `text_consistency`.

    Args:
      audio: float [N, D], one row for each clip, from `Clap.embed`.
      text: float [N, D], row i for the text of clip i, from `Clap.embed_text`.

    Returns:
      from -1 to 1; nothing is clamped or scaled.

    Raises:
      UserError: the shapes differ, there are no rows, or a number is not finite.
    """
    return float(pair_cosines(audio, text).mean())


def pair_cosines(audio: np.ndarray, text: np.ndarray) -> np.ndarray:
    """The cosine of each pair, float64 [N]; see `clap_score`."""
    audio, text = np.asarray(audio, np.float64), np.asarray(text, np.float64)
    if audio.shape != text.shape or audio.ndim != 2 or not audio.size:
        raise UserError(f"both sides must be [pairs, D], got {audio.shape} and {text.shape}")
    if not (np.isfinite(audio).all() and np.isfinite(text).all()):
        raise UserError("an embedding contains numbers that are NaN or infinite")
    audio, text = _unit(audio), _unit(text)
    return (audio * text).sum(axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _SMALLEST)
