"""HTDemucs: separates a mixture into its stems."""

from musicgen_jax.nn.htdemucs.model import HTDemucs

__all__ = ["HTDemucs"]
