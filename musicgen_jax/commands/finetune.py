"""`musicgen-jax finetune`: a model goes on learning, from music of one's own."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="nano, a model's folder, or an official name")
    add(
        "data",
        nargs="?",
        metavar="DATA",
        help="a folder of audio, NAME.json beside NAME.wav saying what it is like, a manifest, or "
        "codes of `train encode`; with --resume both may be left out",
    )
    add("--run", dest="folder", required=True, metavar="DIR", help="folder of the run")
    add("--resume", action="store_true", help="go on from the last checkpoint of DIR")
    add(
        "--codes",
        metavar="DIR",
        help="where audio is kept as codes once it is encoded; without: DIR of the run + -codes",
    )
    add("--lora", type=int, metavar="RANK", help="train an adapter of this rank, 8 or so")
    add("--alpha", type=float, metavar="A", help="of the adapter; without: twice its rank")
    add(
        "--target",
        metavar="REGEX",
        help="which matrices are adapted, by a part of their name, as 'self_attn/in_proj/[qv]$'; "
        "without: all of attention and feed-forward",
    )
    add("--steps", type=int, default=1000, metavar="N", help="of training")
    add("--batch-size", type=int, default=8, metavar="B", help="segments in a step")
    add("--accumulate", type=int, default=1, metavar="N", help="parts that a batch is cut into")
    add(
        "--seconds",
        type=float,
        metavar="S",
        help="of a segment; without: as much as the model sees at once",
    )
    add(
        "--learning-rate",
        type=float,
        metavar="LR",
        help="at its highest; without: 1e-5, of an adapter 2e-4",
    )
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    add("--remat", action="store_true", help="slower, and far less memory")
    add("--devices", type=int, default=1, metavar="N", help="that the batch is spread over; 0: all")
    add("--save-every", type=int, default=200, metavar="N", help="steps between checkpoints")
    add("--log-every", type=int, default=25, metavar="N", help="steps between records")
    add("--seed", type=int, default=0, help="same seed, same training")


def run(args: argparse.Namespace) -> int:
    """Trains, and says where the result lies."""
    from musicgen_jax.errors import UserError
    from musicgen_jax.training import finetune

    if args.resume:
        config = finetune.read_config(args.folder)
        given = {"model": args.model, "data": args.data}
        for name, value in given.items():
            if value is not None and value != getattr(config, name):
                raise UserError(
                    f"{args.folder} began with {name} {getattr(config, name)!r}, not {value!r}"
                )
    elif args.model is None or args.data is None:
        raise UserError("finetune needs MODEL and DATA, or --resume")
    else:
        config = finetune.make_config(
            args.model,
            args.data,
            codes=args.codes or f"{args.folder.rstrip('/')}-codes",
            lora=args.lora,
            alpha=args.alpha,
            target=args.target,
            steps=args.steps,
            batch_size=args.batch_size,
            accumulate=args.accumulate,
            seconds=args.seconds,
            learning_rate=args.learning_rate,
            dtype=args.dtype,
            remat=args.remat,
            devices=args.devices,
            save_every=args.save_every,
            log_every=args.log_every,
            seed=args.seed,
        )
    made = finetune.finetune(
        config, args.folder, resume=args.resume, say=lambda line: print(line, flush=True)
    )
    print(f"wrote {made}")
    return 0
