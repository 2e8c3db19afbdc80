"""Official PyTorch checkpoints to musicgen_jax folders, without torch.

    from musicgen_jax.convert import convert
    convert("facebook/musicgen-small", "musicgen-small")

Sources are audiocraft's pair of files, transformers' folders, or either of them on the Hub; the
tables in `lm`, `t5` and `encodec` say which tensor goes where.
"""

from typing import TYPE_CHECKING

from musicgen_jax.convert.command import add_arguments, run

if TYPE_CHECKING:
    from musicgen_jax.convert.pipeline import convert

__all__ = ["add_arguments", "convert", "run"]


def __getattr__(name: str):
    """`convert` is loaded when asked for: the command line parses before jax is imported."""
    if name == "convert":
        from musicgen_jax.convert.pipeline import convert

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
