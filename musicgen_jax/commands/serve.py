"""`musicgen-jax serve`: music over HTTP for many listeners at once."""

import argparse
import importlib.util
import os
import sys

from musicgen_jax.commands import endings, first_run, models, options
from musicgen_jax.config import DTYPES
from musicgen_jax.errors import UserError, is_number
from musicgen_jax.generation.settings import MAX_DURATION

TOKEN_VARIABLE = "MUSICGEN_JAX_TOKEN"
_NEEDED = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
_LONGEST_JOB = 600.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    add = parser.add_argument
    options.add_model(parser)
    add("--host", default="127.0.0.1", help="address to listen on; any but this "
        "machine's own loopback needs a token")  # fmt: skip
    add("--port", type=int, default=8000, help="0 picks a free one")
    add("--slots", type=int, metavar="N", help="clips that are made at once; the "
        "result of a seed depends on it (default: 4 on a CPU, 8 elsewhere)")  # fmt: skip
    add("--queue", type=int, default=32, metavar="N",
        help="clips that may wait; further requests must come again later")  # fmt: skip
    add("--max-duration", type=float, default=30.0, metavar="SECONDS", help="longest clip that a "
        "client waits for")  # fmt: skip
    add("--max-job-duration", type=float, metavar="SECONDS", help="longest piece made as a job "
        "(default: 600; --max-duration if that is shorter than the model's window)")  # fmt: skip
    add("--dtype", choices=DTYPES, help="dtype of the language model (default: float32 on a CPU, "
        "bfloat16 elsewhere)")  # fmt: skip
    add("--no-negatives", action="store_true",
        help="refuse negative descriptions; this saves their slots, half the memory")  # fmt: skip
    add("--token", metavar="T", help="token that clients must send as Authorization: Bearer T; the "
        f"variable {TOKEN_VARIABLE} keeps it out of the list of processes")  # fmt: skip
    add("--allowed-host", action="append", default=[], metavar="NAME", help="another name that "
        "clients use for this server")  # fmt: skip
    add("--cors-origin", action="append", default=[], metavar="URL", help="a site whose pages "
        "may use this server, such as https://example.org (default: none)")  # fmt: skip
    add("--log-prompts", action="store_true", help="also log the clients' descriptions")
    options.add_devices(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'musicgen-jax[serve]'")
    _check(args)
    # A secret that was read from a file often ends with its line.
    token = (args.token or os.environ.get(TOKEN_VARIABLE) or "").strip() or None

    from musicgen_jax.serving.http import run as server

    taken = server.bind(args.host, args.port)
    try:
        if token is None and not server.is_loopback(taken):
            raise UserError(
                f"--host {args.host} can be reached from other machines: give a --token, or set "
                f"{TOKEN_VARIABLE}"
            )
        return _serve(args, token, taken)
    finally:
        taken.close()


def _serve(args: argparse.Namespace, token: str | None, taken) -> int:
    # From here on it takes a while.
    from musicgen_jax.model import MusicGen
    from musicgen_jax.runtime import compile_cache
    from musicgen_jax.serving.http import run as server
    from musicgen_jax.serving.http.service import Service
    from musicgen_jax.serving.http.settings import Settings
    from musicgen_jax.serving.reservation import Reservation
    from musicgen_jax.serving.scheduler import Scheduler

    compile_cache.enable()
    parts = MusicGen.from_pretrained(args.model, dtype=args.dtype, mesh=options.mesh(args)).parts
    longest_job = args.max_job_duration
    if longest_job is None:
        short = args.max_duration < parts.config.max_duration
        longest_job = args.max_duration if short else max(args.max_duration, _LONGEST_JOB)
    settings = Settings(
        model=os.path.basename(os.path.normpath(args.model)),
        queue=args.queue,
        max_duration=args.max_duration,
        max_job_duration=longest_job,
        token=token,
        hosts=frozenset({"localhost", args.host.lower(), *map(str.lower, args.allowed_host)}),
        any_address=not server.is_loopback(taken),
        origins=tuple(args.cors_origin),
        log_prompts=args.log_prompts,
        hear=models.hearing_of(args.model),
    )
    slots = parts.lm.tuning.slots if args.slots is None else args.slots
    longest = max(args.max_duration, longest_job)
    pools = {"slots": slots, "seconds": longest, "negatives": not args.no_negatives}
    reserved = Reservation.of(parts, **pools, queue=args.queue)
    reserved.check()
    with server.logged(), first_run.announced(_log_compiling):
        # The server counts what is open, also pieces that wait between their windows.
        scheduler = Scheduler(parts, **pools, queue=args.queue + slots)
        line = (
            f"musicgen-jax: {settings.model} on {server.url(taken)}, {slots} slots, "
            f"{reserved.slots / 1e9:.2f} GB of cache"
        )
        http = server.MusicServer(
            Service(scheduler, settings), lambda: print(line, file=sys.stderr, flush=True)
        )
        http.run([taken])
    code = endings.INTERRUPTED if http.force_exit else 0
    if not scheduler.ready.is_set():
        # XLA cannot be interrupted: closing would wait for a compilation that nobody needs.
        sys.stderr.flush()
        os._exit(code)
    scheduler.close()
    return code


def _log_compiling(line: str) -> None:
    from musicgen_jax.serving.http.guard import LOG

    LOG.info(line, {"event": "compiling", "about": line})


def _check(args: argparse.Namespace) -> None:
    """UserError for a value out of range, before anything is loaded."""
    if not 0 <= args.port < 1 << 16:
        raise UserError(f"--port must be from 0 to 65535, got {args.port}")
    if args.slots is not None and args.slots < 1:
        raise UserError(f"--slots must be at least 1, got {args.slots}")
    if args.queue < 1:
        raise UserError(f"--queue must be at least 1, got {args.queue}")
    for name in ("max_duration", "max_job_duration"):
        seconds = getattr(args, name)
        if seconds is not None and not (is_number(seconds) and 0 < seconds <= MAX_DURATION):
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} must be more than 0 and at most {MAX_DURATION} seconds, got {seconds}"
            )
    if args.token is not None and not args.token.strip():
        raise UserError(
            "--token is empty: give a secret, such as the output of openssl rand -hex 16"
        )
