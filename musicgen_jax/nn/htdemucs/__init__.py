"""HTDemucs: a mixture to its stems."""

from musicgen_jax.nn.htdemucs.model import HTDemucs

__all__ = ["HTDemucs"]
