"""Options of commands that several processes run as one JAX program. No jax: `--help` is quick."""

import argparse

from musicgen_jax.errors import UserError, reason


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options with which the processes find each other."""
    processes = parser.add_argument_group("several processes, each with the same arguments")
    add = processes.add_argument
    add(
        "--distributed",
        action="store_true",
        help="find the other processes automatically (TPU pods, Slurm)",
    )
    add("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    add("--num-processes", type=int, metavar="N", help="with --coordinator: how many")
    add("--process-id", type=int, metavar="I", help="with --coordinator: which, 0 to N - 1")


def asked_for(args: argparse.Namespace) -> bool:
    """Whether the arguments ask for several processes."""
    return args.distributed or [*_place(args)] != [None] * 3


def start(args: argparse.Namespace) -> None:
    """Finds the other processes, if there are any. Nothing may have asked for devices before.

    Raises:
      UserError: they do not find each other.
    """
    if not asked_for(args):
        return
    coordinator, count, process = _place(args)
    if coordinator is not None:
        if count is None or process is None:
            raise UserError("--coordinator needs --num-processes N and --process-id I as well")
        from musicgen_jax.runtime import rendezvous

        try:
            rendezvous.meet(coordinator, count, process)
        except UserError as error:
            raise UserError(f"the processes do not find each other: {error}") from None
    import jax

    try:
        jax.distributed.initialize(coordinator, count, process)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes do not find each other: {reason(error)}") from None


def check_clips(args: argparse.Namespace) -> None:
    """UserError, before anything begins, if the options do not work with several processes."""
    if not asked_for(args):
        return
    if args.ray or args.worker[1] > 1:
        raise UserError(
            "processes that share a model cannot be combined with --ray or --worker, whose "
            "workers have their own models"
        )
    if args.devices is None:
        raise UserError("several processes need --devices DATAxMODEL, over all devices they have")


def _place(args: argparse.Namespace) -> tuple[str | None, int | None, int | None]:
    return args.coordinator, args.num_processes, args.process_id
