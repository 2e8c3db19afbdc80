"""Reads and writes audio files, and converts sample rate, channel count and loudness.

Audio is float32 [C, W], nominally between -1 and 1. Names, defaults and formulas follow
audiocraft's `data/audio.py` and `data/audio_utils.py`, so that files are as loud as audiocraft's.
This package does not import jax. It imports soundfile and soxr on first use.
"""

from musicgen_jax.audio.files import (
    FORMATS,
    MAX_SECONDS,
    AudioFileInfo,
    info,
    read,
    read_bytes,
    write,
)
from musicgen_jax.audio.growing import GrowingFile
from musicgen_jax.audio.level import STRATEGIES, loudness, normalize_audio
from musicgen_jax.audio.samples import MAX_SAMPLES, convert_audio, convert_channels, resample

__all__ = [
    "FORMATS",
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
    "read_bytes",
    "resample",
    "write",
]
