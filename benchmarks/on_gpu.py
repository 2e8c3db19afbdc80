"""One accelerator, eight minutes: speed beside transformers, and the same tokens as on a CPU.

Question: how fast is each stage on the accelerator of this machine, how much of its memory
bandwidth do the decode steps use, and does it compute the tokens that a CPU computes? The weights
are random and of official shapes; nothing is downloaded, and no sound library is needed.

    python benchmarks/on_gpu.py
    python benchmarks/on_gpu.py --only small codec
    python benchmarks/on_gpu.py --quick      # tiny shapes, on any machine, in about a minute

The parts run one after the other, the most important first, each in a process of its own. A part
must end by the time that it and all parts before it were given together, so a fast part leaves its
time to the next ones. A part that fails or takes too long prints one line, and the next one starts.
Results are appended to the results file as they come.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import codec
import end_to_end
import jax
import lm_steps
import measuring
import numpy as np
from flax import nnx

from musicgen_jax import testing
from musicgen_jax.config import OFFICIAL_MODELS, EncodecConfig, MusicGenConfig
from musicgen_jax.model import MusicGen
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.testing import device_params

TOTAL_SECONDS = 480
STEPS = 100
CLIP_SECONDS = 10.0
TOKENS_SECONDS = 1.0  # of greedy music: 50 frames, 200 tokens
TEXTS = (end_to_end.TEXT, "a fast irish jig on the flute")
STD = 0.02
CPU_TOKENS = "cpu.npz"


@dataclasses.dataclass(frozen=True)
class Part:
    """One child process.

    Attributes:
      name: also the name on the command line.
      seconds: its share of the time.
      run: what the child does.
      environment: variables that are set for the child.
    """

    name: str
    seconds: float
    run: Callable[[argparse.Namespace], None]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


# --- The plan: child processes, one after the other ----------------------------------------------


def run_parts(
    parts: Sequence[Part], command: Callable[[Part], Sequence[str]], environment: Mapping[str, str]
) -> dict[str, str]:
    """Runs each part in a process of its own and kills it when its time is over.

    Args:
      parts: in order.
      command: of the process that runs a part.
      environment: of the processes; a part's own variables are added.

    Returns:
      {part: "done", "failed (...)" or "out of time"}.
    """
    start, outcomes = time.monotonic(), {}
    for part, end in zip(parts, itertools.accumulate(p.seconds for p in parts), strict=True):
        began = time.monotonic()
        limit = start + end - began
        print(f"=== {part.name}: at most {limit:.0f} s", flush=True)
        outcomes[part.name] = _run(command(part), {**environment, **part.environment}, limit)
        took = time.monotonic() - began
        print(f"=== {part.name}: {outcomes[part.name]} after {took:.0f} s", flush=True)
    return outcomes


def _run(command: Sequence[str], environment: Mapping[str, str], limit: float) -> str:
    try:
        process = subprocess.Popen(command, env=dict(environment), start_new_session=True)
    except OSError as error:
        return f"failed ({error})"
    try:
        code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:  # also on Ctrl-C; the session holds whatever the part started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return "done" if code == 0 else f"failed (exit code {code})"


# --- What a part does ----------------------------------------------------------------------------


def keep(benchmark: str, args: argparse.Namespace, **values) -> None:
    """Appends a line at once; a quick run has a results file of its own."""
    measuring.record(benchmark, argparse.Namespace(quick=False, results=args.results), **values)


def attempt(what: str, run: Callable[[], object]) -> bool:
    """Whether it ran; an error becomes one line that says where it arose."""
    try:
        run()
        return True
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        print(f"{what}: failed: {text} ({Path(place.filename).name}:{place.lineno})", flush=True)
        return False


def torch_device() -> str:
    """Where transformers runs: the same card, or the CPU if JAX has no accelerator."""
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def random_encodec(config: EncodecConfig) -> Encodec:
    """A codec with random weights of the host: drawing each shape by itself compiles a program."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Encodec(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, testing.random_params(nnx.to_pure_dict(state), std=STD))
    return nnx.merge(graphdef, state)


def model_config(quick: bool) -> MusicGenConfig:
    """Of musicgen-small; with `quick` a tiny one of the same form."""
    return testing.DEBUG if quick else OFFICIAL_MODELS["facebook/musicgen-small"]


def language_model(size: str, args: argparse.Namespace) -> None:
    """Steps per second at batch 1 and 64, in bfloat16 and int8, beside transformers in bfloat16."""
    config = lm_steps.lm_config(size, args.quick)
    num_steps = 8 if args.quick else STEPS
    dtypes = ("bfloat16", "int8")
    lms = {dtype: lm_steps.random_lm(config, dtype, device_params) for dtype in dtypes}
    stream_bytes, times = 1 << (22 if args.quick else 31), 16
    streams = measuring.memory_streams(stream_bytes, times)

    def at(batch: int) -> None:
        runs: dict[str, Callable] = {t: lm_steps.ours(lms[t], batch, num_steps) for t in dtypes}
        try:
            peer = lm_steps.theirs(config, "bfloat16", batch, num_steps, False, torch_device())
            runs["transformers bfloat16"] = peer
        except Exception as error:  # ours still counts
            print(f"transformers cannot be built: {error}".splitlines()[0], flush=True)
        runs["copying"] = streams["copying"]
        result = measuring.in_turn(runs, args.rounds)
        copying = result.pop("copying")
        speeds = measuring.summary(result, num_steps, "steps", "bfloat16")
        fractions = {}
        for dtype in dtypes:
            moved = lm_steps.bytes_per_step(lms[dtype], batch, num_steps)
            per_run = (moved["weights"] + moved["cache"]) * num_steps
            rates = [per_run / s for s in result[dtype].get("seconds", ())]
            best = [stream_bytes * times / s for s in copying["seconds"]]
            if rates:
                pairs = zip(rates, best, strict=True)
                fractions[dtype] = round(statistics.median(a / b for a, b in pairs), 3)
        gbs = stream_bytes * times / statistics.median(copying["seconds"]) / 1e9
        keep(
            "on_gpu_lm",
            args,
            size=size,
            batch=batch,
            steps=num_steps,
            **speeds,
            fraction_of_copying=fractions,
            copying_gb_per_second=round(gbs, 1),
            sides=result,
        )

    for batch in (1,) if args.quick else (1, 64):
        attempt(f"{size}, batch {batch}", partial(at, batch))


def tokens_here(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Greedy codes and teacher-forced logits of musicgen-small's shape, in full float32."""
    jax.config.update("jax_default_matmul_precision", "highest")
    config = model_config(args.quick)
    model = testing.random_model(config, std=0.3 if args.quick else STD)
    duration = 0.2 if args.quick else TOKENS_SECONDS
    codes = model.generate(TEXTS, duration=duration, use_sampling=False).codes
    # The same codes on both sides: random ones, as the generated ones might differ.
    forced = np.random.default_rng(0).integers(0, config.lm.card, codes.shape)
    return {"codes": np.asarray(codes), "logits": np.asarray(model.lm_logits(forced, TEXTS))}


def tokens_on_cpu(args: argparse.Namespace) -> None:
    """Keeps the CPU's tokens for `tokens_on_device`."""
    np.savez(args.folder / CPU_TOKENS, **tokens_here(args))


def tokens_on_device(args: argparse.Namespace) -> None:
    """Compares the accelerator's tokens with the CPU's."""
    if not (args.folder / CPU_TOKENS).exists():
        raise RuntimeError("no tokens of a CPU to compare with")
    cpu, here = np.load(args.folder / CPU_TOKENS), tokens_here(args)
    same = cpu["codes"] == here["codes"]
    differs = np.flatnonzero(~same.all(axis=(0, 1)))
    known = np.isfinite(cpu["logits"]) & np.isfinite(here["logits"])
    error = np.abs(cpu["logits"] - here["logits"])[known].max() / np.abs(cpu["logits"][known]).max()
    keep(
        "on_gpu_tokens",
        args,
        tokens=same.size,
        same_tokens=round(float(same.mean()), 4),
        first_frame_that_differs=int(differs[0]) if len(differs) else None,
        largest_logit_error=float(error),
    )


def encodec(args: argparse.Namespace) -> None:
    """Seconds of audio that the codec encodes and decodes in a second."""
    seconds = 0.1 if args.quick else CLIP_SECONDS
    config = codec.codec_config(args.quick)
    ours = random_encodec(config)
    sides = codec.sides(config, seconds, torch_device(), ours)

    def measure(task: str) -> None:
        result = measuring.in_turn(sides[task], args.rounds)
        speeds = measuring.summary(result, seconds, "seconds of audio", "musicgen_jax")
        keep("on_gpu_codec", args, task=task, audio_seconds=seconds, **speeds, sides=result)

    for task in ("decode", "encode"):
        attempt(task, partial(measure, task))


def clip(cache: str, args: argparse.Namespace) -> None:
    """Seconds from a prompt to a clip: the first call, the next ones, and until the first sound."""
    config = model_config(args.quick)
    duration = 0.2 if args.quick else CLIP_SECONDS

    def weights(component: str, abstract: dict) -> dict:
        large = component == "lm"
        return device_params(abstract) if large else testing.random_params(abstract, std=STD)

    model = MusicGen.build(
        config,
        weights,
        testing.DummyTokenizer(config.t5.vocab_size),
        dtype="bfloat16",
    )
    runs = {"musicgen_jax": lambda: model.generate(TEXTS[:1], duration=duration).audio}
    if cache == "empty" and not args.quick:
        try:
            peer = end_to_end.peer("small", "bfloat16", duration, torch_device())
            runs["transformers"] = peer
        except Exception as error:
            print(f"transformers cannot be built: {error}".splitlines()[0], flush=True)
    result = measuring.in_turn(runs, 1)
    sounds = [round(end_to_end.first_sound(model, duration), 3) for _ in range(2)]
    speeds = measuring.summary(result, duration, "seconds of audio", "musicgen_jax")
    keep(
        "on_gpu_clip",
        args,
        compile_cache=cache,
        duration=duration,
        **speeds,
        first_sound_seconds=sounds,
        sides=result,
    )


PARTS = (
    Part("small", 105, partial(language_model, "small")),
    Part("tokens-cpu", 50, tokens_on_cpu, {"JAX_PLATFORMS": "cpu"}),
    Part("tokens", 40, tokens_on_device),
    Part("codec", 40, encodec),
    Part("clip", 70, partial(clip, "empty")),
    Part("clip-again", 35, partial(clip, "filled")),
    Part("large", 80, partial(language_model, "large")),
    Part("medium", 60, partial(language_model, "medium")),
)


# --- The table -----------------------------------------------------------------------------------


def table(lines: Sequence[dict]) -> list[str]:
    """The results as one short line each."""
    rows = []
    for line in lines:
        speeds = {side: values[0] for side, values in line.get("per_second", {}).items()}
        if line["benchmark"] == "on_gpu_lm":
            what = f"{line['size']}, batch {line['batch']}"
            for side, speed in speeds.items():
                fraction = line["fraction_of_copying"].get(side)
                suffix = "" if fraction is None else f", {fraction:.0%} of the copy bandwidth"
                rows.append(f"{what}, {side}: {speed:.1f} steps/s{suffix}")
        elif line["benchmark"] == "on_gpu_tokens":
            rows.append(
                f"greedy tokens as on the CPU: {line['same_tokens']:.2%} of {line['tokens']}, "
                f"logits within {line['largest_logit_error']:.1e} of the largest"
            )
        elif line["benchmark"] == "on_gpu_codec":
            for side, speed in speeds.items():
                rows.append(f"{line['task']}, {side}: {speed:.1f} seconds of audio a second")
        elif line["benchmark"] == "on_gpu_clip":
            for side, times in line["sides"].items():
                if "seconds" in times:
                    rows.append(
                        f"clip of {line['duration']:g} s, compile cache {line['compile_cache']}, "
                        f"{side}: first {times['first']:.2f} s, warm {times['seconds'][0]:.2f} s"
                    )
    return rows


def read_lines(results: Path) -> list[dict]:
    """The results so far; the last line may be cut off by a killed part."""
    lines = []
    for text in results.read_text().splitlines() if results.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            print(f"not a line of results: {text[:80]}")
    return lines


def main(argv: list[str] | None = None) -> dict[str, str] | None:
    parser = measuring.arguments(__doc__)
    parser.set_defaults(rounds=3)
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        (part,) = (part for part in PARTS if part.name == args.part)
        if not attempt(part.name, lambda: part.run(args)):
            raise SystemExit(1)
        return None

    # In tiny shapes the other sizes are the same model.
    chosen = args.only or [n for n in names if not (args.quick and n in ("large", "medium"))]
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "quick.jsonl" if args.quick else args.results

        def command(part: Part) -> list[str]:
            words = [sys.executable, __file__, "--part", part.name, "--folder", folder]
            words += ["--results", str(results), "--rounds", str(1 if args.quick else args.rounds)]
            return [*words, "--quick"] if args.quick else words

        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # transformers shares the card
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path[1:]]),
        }
        if args.quick:  # most of it is compiling
            flags = os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"
            environment |= {"XLA_FLAGS": " ".join(flags).strip(), "OMP_NUM_THREADS": "1"}
            environment.setdefault("JAX_PLATFORMS", "cpu")
        before = len(read_lines(results))
        patience = 4 if args.quick else 1  # shows that it runs, on a busy machine too
        parts = [
            dataclasses.replace(part, seconds=patience * part.seconds)
            for part in PARTS
            if part.name in chosen
        ]
        outcomes = run_parts(parts, command, environment)
        print("\n".join(table(read_lines(results)[before:])))
    return outcomes


if __name__ == "__main__":
    main()
