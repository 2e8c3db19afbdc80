"""The command line under its earlier name; it is in `musicgen_jax.commands.cli`."""

from musicgen_jax.commands.cli import main

__all__ = ["main"]
