"""Waveforms in and out of files, and from one rate, channel count or loudness to another.

Audio is float32 [C, W], nominally within -1 and 1. Names, defaults and formulas follow audiocraft's
`data/audio.py` and `data/audio_utils.py`, so that a file written here sounds as loud as theirs.
No jax here. soundfile and soxr load on first use.
"""

from musicgen_jax.audio.files import MAX_SAMPLES, MAX_SECONDS, AudioFileInfo, info, read, write
from musicgen_jax.audio.growing import GrowingFile
from musicgen_jax.audio.level import STRATEGIES, loudness, normalize_audio
from musicgen_jax.audio.samples import convert_audio, convert_channels, resample

__all__ = [
    "MAX_SAMPLES",
    "MAX_SECONDS",
    "STRATEGIES",
    "AudioFileInfo",
    "GrowingFile",
    "convert_audio",
    "convert_channels",
    "info",
    "loudness",
    "normalize_audio",
    "read",
    "resample",
    "write",
]
