"""`musicgen-jax finetune`: trains a model further on your own music."""

import argparse
from typing import Any

from musicgen_jax import console
from musicgen_jax.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="nano, a model's folder, or an official name")
    add(
        "data",
        nargs="?",
        metavar="DATA",
        help="a folder of audio, with a description in NAME.txt or NAME.json next to NAME.wav; a "
        "manifest; or codes of `train encode`; with --resume both may be left out",
    )
    add("--run", dest="folder", required=True, metavar="DIR", help="folder of the run")
    add(
        "--resume",
        action="store_true",
        help="resume from the last checkpoint of DIR, with its settings; --steps, --accumulate, "
        "--remat, --devices, --save-every and --log-every may change",
    )
    add(
        "--data-changed",
        action="store_true",
        help="resume even if the data differs from what the run started with",
    )
    add(
        "--codes",
        metavar="DIR",
        help="where encoded audio is kept (default: the run's DIR with -codes added)",
    )
    add("--lora", type=int, metavar="RANK", help="train an adapter of this rank, such as 8")
    add(
        "--alpha", type=float, metavar="A", help="strength of the adapter (default: twice its rank)"
    )
    add(
        "--target",
        metavar="REGEX",
        help="which matrices are adapted, by a part of their name, such as "
        "'self_attn/in_proj/[qv]$' "
        "(default: all of attention and feed-forward)",
    )
    add("--steps", type=int, metavar="N", help="training steps in total (default: 1000)")
    add("--batch-size", type=int, metavar="B", help="segments in a step (default: 8)")
    add(
        "--accumulate",
        type=int,
        metavar="N",
        help="parts that each batch is split into (default: 1)",
    )
    add(
        "--seconds",
        type=float,
        metavar="S",
        help="length of a segment (default: the model's window)",
    )
    add(
        "--learning-rate",
        type=float,
        metavar="LR",
        help="peak learning rate (default: 1e-5, for an adapter 2e-4)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of the computation (default: float32)",
    )
    add(
        "--remat",
        action=argparse.BooleanOptionalAction,
        help="recompute activations: far less memory, but slower",
    )
    options.add_devices(parser)
    add("--save-every", type=int, metavar="N", help="steps between checkpoints (default: 200)")
    add("--log-every", type=int, metavar="N", help="steps between records (default: 25)")
    add("--seed", type=int, help="same seed, same training (default: 0)")
    console.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Trains, and says where the result is."""
    from musicgen_jax.errors import UserError
    from musicgen_jax.runtime import compile_cache
    from musicgen_jax.training import finetune
    from musicgen_jax.training.layout import MeshConfig

    compile_cache.enable()
    mesh = None if args.devices is None else MeshConfig(*args.devices)
    chosen: dict[str, Any] = {name: getattr(args, name) for name in _OPTIONS} | {"mesh": mesh}
    if args.resume:
        config = finetune.resumed_config(args.folder, chosen)
    elif args.model is None or args.data is None:
        raise UserError("finetune needs MODEL and DATA, or --resume")
    else:
        chosen["codes"] = args.codes or f"{args.folder.rstrip('/')}-codes"
        config = finetune.make_config(
            **{name: value for name, value in chosen.items() if value is not None}
        )
    out = console.Console.of(args)
    made = finetune.finetune(
        config,
        args.folder,
        resume=args.resume,
        data_changed=args.data_changed,
        say=out.say,
        bar=out.bar,
    )
    what = "folder" if made.is_dir() else "file"
    out.made(f"wrote {made}", **{what: str(made)})


_OPTIONS = (
    *("model", "data", "codes", "lora", "alpha", "target", "steps", "batch_size", "accumulate"),
    *("seconds", "learning_rate", "dtype", "remat", "save_every", "log_every", "seed"),
)
