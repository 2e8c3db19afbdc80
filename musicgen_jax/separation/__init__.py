"""Separation of music into stems: HTDemucs."""

from musicgen_jax.separation.model import HTDemucs
from musicgen_jax.separation.separator import Separator

__all__ = ["HTDemucs", "Separator"]
