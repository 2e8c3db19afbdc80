"""`musicgen-jax warmup`: the first clip as fast as the second."""

import argparse

from musicgen_jax.config import DTYPES
from musicgen_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to a parser."""
    add = parser.add_argument
    add(
        "--model",
        default="nano",
        help="nano, a converted model's folder, or an official name such as musicgen-small",
    )
    add(
        "--duration",
        type=float,
        nargs="+",
        metavar="SECONDS",
        help="of the clips to come; without: every length that the language model is compiled "
        "for, and of the codec the default duration and the longest",
    )
    add(
        "--dtype",
        choices=DTYPES,
        help="for generate --dtype; without: what that is without",
    )
    add("--batch", type=int, default=1, metavar="B", help="clips made at once")
    add(
        "--tokens",
        type=int,
        nargs="+",
        default=[16, 32],
        metavar="N",
        help="how long prompts may be, in tokens, of which a word is one or two; 0: no prompt",
    )
    add("--greedy", action="store_true", help="for generate --greedy")
    add("--top-k", type=int, default=250, metavar="K", help="for generate --top-k K")
    add("--top-p", type=float, default=0.0, metavar="P", help="for generate --top-p, any but 0")
    add("--stream", action="store_true", help="for generate --stream")


def run(args: argparse.Namespace) -> None:
    """Compiles, and says what it took."""
    from musicgen_jax.commands import output
    from musicgen_jax.generation.warmup import warm_up
    from musicgen_jax.model import MusicGen
    from musicgen_jax.runtime import compile_cache

    folder = compile_cache.enable()
    if folder is None:
        raise UserError(
            "there is no cache to fill: it is off, or its folder "
            f"({compile_cache.folder() or compile_cache.VARIABLE + '=off'}) cannot be written"
        )
    with compile_cache.counting() as total:
        stages = warm_up(
            MusicGen.from_pretrained(args.model, dtype=args.dtype),
            args.duration,
            batch=args.batch,
            tokens=args.tokens,
            use_sampling=not args.greedy,
            top_k=args.top_k,
            top_p=args.top_p,
            chunk_seconds=output.STREAM_CHUNK if args.stream else None,
        )
        for stage in stages:
            print(f"{stage.name}: {_told(stage.counts)}", flush=True)
    print(f"ready: {_told(total)}, in {folder}")


def _told(counts) -> str:
    return f"{counts.compiled} compiled, {counts.loaded} loaded, {counts.seconds:.1f} s"
