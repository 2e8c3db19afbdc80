"""MusicGen in JAX: text in, music out."""

import importlib

__version__ = "1.0.0"

TYPE_CHECKING = False  # as `typing` has it, whose import would delay every command

if TYPE_CHECKING:
    from musicgen_jax import audio
    from musicgen_jax.codec import Codec, EncodedAudio
    from musicgen_jax.errors import UserError
    from musicgen_jax.generation.schedule import Cue
    from musicgen_jax.model import GenerationOutput, MusicGen
    from musicgen_jax.runtime import sharding

__all__ = [
    "Codec",
    "Cue",
    "EncodedAudio",
    "GenerationOutput",
    "MusicGen",
    "UserError",
    "__version__",
    "audio",
    "sharding",
]

_HOME = {
    "Codec": "musicgen_jax.codec",
    "Cue": "musicgen_jax.generation.schedule",
    "EncodedAudio": "musicgen_jax.codec",
    "GenerationOutput": "musicgen_jax.model",
    "MusicGen": "musicgen_jax.model",
    "UserError": "musicgen_jax.errors",
}
_MODULES = {"audio": "musicgen_jax.audio", "sharding": "musicgen_jax.runtime.sharding"}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: `musicgen-jax --help` must not wait for jax."""
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
