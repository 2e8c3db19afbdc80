"""Evaluation of music: distances between sets of clips, and scores of pairs."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musicgen_jax.metrics.chroma import chroma_cosine
    from musicgen_jax.metrics.clap import Clap
    from musicgen_jax.metrics.clap_pairs import clap_score
    from musicgen_jax.metrics.divergence import kl_divergence
    from musicgen_jax.metrics.frechet import frechet_distance
    from musicgen_jax.metrics.kernel import kernel_audio_distance
    from musicgen_jax.metrics.passt import Passt
    from musicgen_jax.metrics.vggish import Vggish

__all__ = [
    "Clap",
    "Passt",
    "Vggish",
    "chroma_cosine",
    "clap_score",
    "frechet_distance",
    "kernel_audio_distance",
    "kl_divergence",
]

_HOME = {
    "Clap": "clap",
    "Passt": "passt",
    "Vggish": "vggish",
    "chroma_cosine": "chroma",
    "clap_score": "clap_pairs",
    "frechet_distance": "frechet",
    "kernel_audio_distance": "kernel",
    "kl_divergence": "divergence",
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: distances need no jax."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
