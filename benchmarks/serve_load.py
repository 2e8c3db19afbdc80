"""Load on a server on loopback: throughput, seconds to the first audio, and equality with generate.

    python benchmarks/serve_load.py --model nano --slots 4 --clients 16 --requests 48
    python benchmarks/serve_load.py --model nano --slots 4 --clients 16 --minutes 120

Starts a server in this process, on a free port of 127.0.0.1. Clients ask for clips of mixed lengths
and settings, one after the other; every sixth leaves in the middle. Each finished clip is compared
with `model.generate(slots=N)`, sample for sample. Exits with 1 if one differs or was cut off, or
if nothing came.

With `--minutes` the clients go on for that long, and the memory of the process, clients included,
is printed twenty times.
"""

import argparse
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from musicgen_jax import testing
from musicgen_jax.audio.files import to_int16
from musicgen_jax.audio.level import apply_level
from musicgen_jax.model import MusicGen
from musicgen_jax.serving.http.run import MusicServer, bind
from musicgen_jax.serving.http.service import Service
from musicgen_jax.serving.http.settings import Settings
from musicgen_jax.serving.scheduler import Scheduler

TEXTS = ("a calm waltz for solo piano", "a fast irish jig on the flute", "happy march with drums")
SETTINGS = ({}, {"temperature": 1.2, "top_k": 50}, {"top_p": 0.9, "cfg_coef": 2.0})
PATIENCE = 600.0  # seconds for an answer


@dataclass
class Heard:
    """What all clients have heard. They count at the same time, so each takes the lock."""

    clips: Counter[tuple[str, str]] = field(default_factory=Counter)  # by request and SHA-256
    bytes: int = 0
    first: list[float] = field(default_factory=list)  # seconds to the first audio
    refused: int = 0
    left: int = 0
    cut_off: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the load and prints what came of it."""
    args = _arguments(argv)
    if args.quick:
        model = testing.random_model()
    else:
        model = MusicGen.from_pretrained(args.model, dtype=args.dtype)
    heard = Heard()
    with Scheduler(
        model.parts, slots=args.slots, seconds=args.seconds, queue=args.slots + args.queue
    ) as scheduler:
        scheduler.ready.wait()
        service = Service(scheduler, Settings("load", queue=args.queue, max_duration=args.seconds))
        with _serving(service) as port:
            began = time.perf_counter()
            _listen(port, args, heard)
            passed = time.perf_counter() - began
        compiled = scheduler.compilations
    failed = _report(model, args.slots, heard, passed, compiled)
    answered = heard.clips.total() + heard.left
    wrong = answered != args.requests if not args.minutes else heard.cut_off or not answered
    return int(failed or bool(wrong))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", default="nano")
    add("--dtype")
    add("--slots", type=int, default=4)
    add("--queue", type=int, default=32)
    add("--clients", type=int, default=16, help="at the same time, at most 64")
    add("--requests", type=int, default=48, help="altogether, at most 10000")
    add("--minutes", type=float, help="go on for so long, whatever --requests says")
    add("--seconds", type=float, default=10.0, help="of the longest clip")
    add("--quick", action="store_true", help="a tiny model: shows only that it runs")
    args = parser.parse_args(argv)
    args.clients, args.requests = min(args.clients, 64), min(args.requests, 10_000)
    return args


def _wanted(number: int, longest: float) -> dict:
    return {
        "prompt": TEXTS[number % 3],
        "seed": number % 7,
        "duration": max(0.2, round(longest * (1 + number % 4) / 4, 2)),
        **SETTINGS[number // 3 % 3],
    }


@contextlib.contextmanager
def _serving(service: Service):
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        server = MusicServer(service)
        thread = threading.Thread(target=server.run, args=([taken],))
        thread.start()
        try:
            yield taken.getsockname()[1]
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join()


def _listen(port: int, args: argparse.Namespace, heard: Heard) -> None:
    """All clients, until every request has been answered or the time is over."""
    turns = itertools.count()
    began = time.monotonic()

    def goes_on(turn: int) -> bool:
        if args.minutes:
            return time.monotonic() < began + 60 * args.minutes
        return turn < args.requests

    def client() -> None:
        while goes_on(turn := next(turns)):
            try:
                _ask(port, _wanted(turn, args.seconds), heard, leave=turn % 6 == 5)
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                print(f"cut off: {error!r}", file=sys.stderr)
                with heard.lock:
                    heard.cut_off += 1

    threads = [threading.Thread(target=client) for _ in range(args.clients)]
    for thread in threads:
        thread.start()
    for i in range(1, 21 if args.minutes else 1):
        time.sleep(max(0, began + 3 * args.minutes * i - time.monotonic()))
        print(f"after {args.minutes * i / 20:.1f} min: {_memory() / 1e6:.0f} MB, "
              f"{heard.clips.total()} clips", flush=True)  # fmt: skip
    for thread in threads:
        thread.join()


def _memory() -> int:
    """Bytes of memory that this process has now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _ask(port: int, body: dict, heard: Heard, *, leave: bool) -> None:
    """One request; a client that is told to come again later does so."""
    sent = json.dumps({**body, "stream": True, "response_format": "pcm"})
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.closing(connection):
            began = time.perf_counter()
            connection.request(
                "POST", "/v1/audio/generate", sent, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            if answer.status == 429:
                with heard.lock:
                    heard.refused += 1
                time.sleep(min(10, int(answer.headers["Retry-After"])))
                continue
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {answer.read()[:300]!r}")
            start = answer.read(2)
            waited = time.perf_counter() - began
            audio = b"" if leave else start + answer.read()
            with heard.lock:
                heard.first.append(waited)
                if leave:
                    heard.left += 1
                else:
                    heard.clips[json.dumps(body), hashlib.sha256(audio).hexdigest()] += 1
                    heard.bytes += len(audio)
            return


def _report(model: MusicGen, slots: int, heard: Heard, passed: float, compiled: int) -> bool:
    bytes_per_second = 2 * model.audio_channels * model.sample_rate
    seconds = heard.bytes / bytes_per_second
    print(f"{heard.clips.total()} clips, {seconds:.0f} s of music in {passed:.1f} s: "
          f"{seconds / passed:.2f} x real time")  # fmt: skip
    print(f"{heard.left} clients left, {heard.cut_off} were cut off, "
          f"{heard.refused} times the queue was full")  # fmt: skip
    marks = np.percentile(heard.first or [np.nan], [50, 90, 99])
    print("first audio after " + ", ".join(f"{m:.2f} s" for m in marks) + " (50, 90, 99 %)")
    print(f"programs compiled while serving: {compiled}")
    made: dict[str, str] = {}
    different = 0
    for (body, digest), count in heard.clips.items():
        if body not in made:
            settings = json.loads(body)
            clip = model.generate([settings.pop("prompt")], slots=slots, **settings).audio[0]
            samples = to_int16(apply_level(clip, "clip", 0.0)).astype("<i2").T.tobytes()
            made[body] = hashlib.sha256(samples).hexdigest()
        different += count * (digest != made[body])
    print(f"different from generate(slots={slots}): {different} of {heard.clips.total()}")
    return bool(different or compiled)


if __name__ == "__main__":
    sys.exit(main())
