"""Architectures as frozen dataclasses, and the reader of configs, settings and indices.

Nothing here imports jax or numpy: tools, docs and the command line read configs at once.
"""

from musicgen_jax.config.architectures import (
    CACHE_DTYPES,
    DTYPES,
    ENCODEC_24KHZ,
    ENCODEC_32KHZ,
    ENCODEC_48KHZ,
    FORMAT_VERSION,
    JOINS,
    OFFICIAL_CODECS,
    OFFICIAL_MODELS,
    STEREO_DELAYS,
    T5_BASE,
    EncodecConfig,
    HTDemucsConfig,
    LMConfig,
    MertConfig,
    MusicGenConfig,
    PasstConfig,
    StyleConfig,
    T5Config,
    VggishConfig,
)
from musicgen_jax.config.clap import ClapConfig, HtsatConfig, RobertaConfig
from musicgen_jax.config.schema import from_dict, to_dict

__all__ = [
    "CACHE_DTYPES",
    "DTYPES",
    "ENCODEC_24KHZ",
    "ENCODEC_32KHZ",
    "ENCODEC_48KHZ",
    "FORMAT_VERSION",
    "JOINS",
    "OFFICIAL_CODECS",
    "OFFICIAL_MODELS",
    "STEREO_DELAYS",
    "T5_BASE",
    "ClapConfig",
    "EncodecConfig",
    "HTDemucsConfig",
    "HtsatConfig",
    "LMConfig",
    "MertConfig",
    "MusicGenConfig",
    "PasstConfig",
    "RobertaConfig",
    "StyleConfig",
    "T5Config",
    "VggishConfig",
    "from_dict",
    "to_dict",
]
