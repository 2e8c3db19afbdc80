"""`musicgen-jax warmup`: the first clip as fast as the second."""

import argparse

from musicgen_jax import console
from musicgen_jax.commands import first_run, options
from musicgen_jax.config import DTYPES
from musicgen_jax.errors import UserError
from musicgen_jax.generation.settings import DEFAULT_SAMPLING, Sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to a parser."""
    add = parser.add_argument
    options.add_model(parser)
    add(
        "--duration",
        type=float,
        nargs="+",
        metavar="SECONDS",
        help="durations of the clips to come (default: every length that the language model is "
        "compiled for, and for the codec the default duration and the longest)",
    )
    add(
        "--dtype",
        choices=DTYPES,
        help="dtype to warm up for (default: the default of `generate`)",
    )
    add("--batch", type=int, default=1, metavar="B", help="clips made at once")
    add(
        "--tokens",
        type=int,
        nargs="+",
        default=[16, 32],
        metavar="N",
        help="how long prompts may be, in tokens; a word is one or two tokens; 0: no prompt",
    )
    add("--greedy", action="store_true", help="warm up for generate --greedy")
    add("--top-k", type=int, default=DEFAULT_SAMPLING.top_k, metavar="K",
        help="warm up for generate --top-k K")  # fmt: skip
    add("--top-p", type=float, default=DEFAULT_SAMPLING.top_p, metavar="P",
        help="warm up for generate --top-p; any value except 0 will do")  # fmt: skip
    add("--stream", action="store_true", help="warm up for generate --stream")
    console.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Compiles, and says what it took."""
    sampling = Sampling(use_sampling=not args.greedy, top_k=args.top_k, top_p=args.top_p)
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
    out = console.Console.of(args)
    with (
        compile_cache.counting() as total,
        first_run.announced(out.note),
        out.counter("compiling", "stage") as progress,
    ):
        stages = warm_up(
            MusicGen.from_pretrained(args.model, dtype=args.dtype).parts,
            args.duration,
            batch=args.batch,
            tokens=args.tokens,
            sampling=sampling,
            chunk_seconds=output.STREAM_CHUNK if args.stream else None,
        )
        for stage in stages:
            out.say(f"{stage.name}: {_counted(stage.counts)}")
            progress(stage.done, stage.total)
    facts = {"compiled": total.compiled, "loaded": total.loaded, "seconds": total.seconds}
    out.made(f"ready: {_counted(total)}, in {folder}", folder=str(folder), **facts)


def _counted(counts) -> str:
    return f"{counts.compiled} compiled, {counts.loaded} loaded, {counts.seconds:.1f} s"
