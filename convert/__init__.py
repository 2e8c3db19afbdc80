"""Converts official PyTorch checkpoints to musicgen_jax folders and back, without torch.

    from musicgen_jax.convert import convert, export_torch
    convert("facebook/musicgen-small", "musicgen-small")
    export_torch("musicgen-small", "small-for-audiocraft", format="audiocraft")

Sources are audiocraft's pair of files or transformers' folders, local or on the Hub. The tables in
`lm`, `t5` and `encodec` map tensors to parameters, in both directions.
"""

from typing import TYPE_CHECKING

from musicgen_jax.convert.command import add_arguments, run

if TYPE_CHECKING:
    from musicgen_jax.convert.pipeline import convert
    from musicgen_jax.convert.to_torch import export_torch

__all__ = ["add_arguments", "convert", "export_torch", "run"]


def __getattr__(name: str):
    """Imports the functions on first use, so that the command line parses before importing jax."""
    if name == "convert":
        from musicgen_jax.convert.pipeline import convert

        return convert
    if name == "export_torch":
        from musicgen_jax.convert.to_torch import export_torch

        return export_torch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
