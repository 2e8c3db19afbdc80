"""How far sets of clips are from real ones: Frechet distances in two embeddings.

Both embeddings have one row per clip. `log_mel` is the probes' timbre: statistics of log-mel
spectra, independent of any model. `latents` is the output of the codec's encoder before the
quantizer: over the frames the mean, the standard deviation, and the mean change from one frame to
the next. Mean and deviation alone would not notice frames in the wrong order. A row is a clip and
not a frame: the frames of a clip are so similar that thousands of them would suggest a precision
that a hundred pieces do not have. Every clip is measured as audio, so one codec measures the clips
of any model.

The clips are compared with two kinds of real ones: as they are, and through the codec. A codec
colours everything, so the second comparison shows what the language model adds.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import nano_clips
import numpy as np
from clip_measures import frechet, principal
from nano_probes import Features

from musicgen_jax import MusicGen
from musicgen_jax.audio import convert_audio
from musicgen_jax.nano.synth import SAMPLE_RATE
from musicgen_jax.nn.encodec import Encodec

Rows = Mapping[str, np.ndarray]
"""By embedding, float64 [N, D]: a row per clip."""

EMBEDDINGS = {"log_mel": "log-mel", "latents": "codec's latents"}
REFERENCES = {"rendered": "real", "codec": "real through the codec"}


@jax.jit
def _encoder(encodec: Encodec, audio: jax.Array) -> jax.Array:
    return encodec.encoder(audio.swapaxes(1, 2))


def latents(model: MusicGen, audio: np.ndarray, batch: int) -> np.ndarray:
    """Statistics of the encoder's output for clips [N, W] at the composer's rate: [N, 3 E]."""
    convert = partial(
        convert_audio, from_rate=SAMPLE_RATE, to_rate=model.sample_rate, to_channels=1
    )
    rows = []
    for (part,) in nano_clips.parts(batch, audio):
        wav = np.stack([convert(clip[None]) for clip in part])
        frames = np.asarray(_encoder(model.encodec, wav), np.float64)  # [B, T, E]
        change = np.abs(np.diff(frames, axis=1)).mean(1)
        rows.append(np.concatenate([frames.mean(1), frames.std(1), change], axis=1))
    return np.concatenate(rows)


def embed(model: MusicGen, audio: np.ndarray, items: Sequence[Features], batch: int) -> Rows:
    """Clips [N, W] and their features in both embeddings."""
    timbre = np.stack([item.timbre for item in items]).astype(np.float64)
    return {"log_mel": timbre, "latents": latents(model, audio, batch)}


def across(clips: np.ndarray, reference: np.ndarray) -> float:
    """The mean distance of each half of clips [N, D] to the other half of the reference [N, D].

    Row i of both belongs to the same piece, so no piece is compared with itself, and real clips can
    be measured against real ones. Scales and axes come from the reference alone.
    """
    if clips.shape != reference.shape:
        raise ValueError(f"clips are {clips.shape}, the reference is {reference.shape}")
    half = len(clips) // 2
    first, second = slice(None, half), slice(half, None)
    values = []
    for mine, other in ((first, second), (second, first)):
        project = principal(reference[other])
        values.append(frechet(project(clips[mine]), project(reference[other])))
    return float(np.mean(values))


def distances(embedded: Mapping[str, Rows]) -> dict[str, dict]:
    """By condition, embedding and reference: {"generated": {"log_mel": {"rendered": 3.1, ...}}}.

    Args:
      embedded: rows of the same pieces by condition, including those of `REFERENCES`.
    """
    return {
        name: {
            kind: {to: across(rows[kind], embedded[to][kind]) for to in REFERENCES}
            for kind in EMBEDDINGS
        }
        for name, rows in embedded.items()
    }
