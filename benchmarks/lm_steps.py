"""Steps per second of the language model, ours against transformers, in one run.

Question: how fast does the decode loop run at musicgen-small's true shape, batch 1 with guidance,
float32, on this machine? Random weights, 16 text tokens, top-k 250; text encoder and codec left
out on both sides. The two run in turn, so that what disturbs one disturbs the other; only the
ratio means something. Each round prints how many cores other processes used meanwhile: compare
rounds where that is near zero. On a machine that is never quiet pin it to one core.

    python benchmarks/lm_steps.py --steps 250 --rounds 5
    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/lm_steps.py --steps 50 --rounds 3

Appends one JSON line to benchmarks/results.jsonl.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from musicgen_jax.conditioning.condition import Condition
from musicgen_jax.config import OFFICIAL_MODELS
from musicgen_jax.generate import generate_codes
from musicgen_jax.lm import LM

HERE = Path(__file__).parent
TEXT_TOKENS = 16


def ours(size: str, dtype: str, steps: int) -> Callable[[], None]:
    config = OFFICIAL_MODELS[f"facebook/musicgen-{size}"].lm
    lm = LM(config, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    cross = np.random.default_rng(0).normal(size=(1, TEXT_TOKENS, config.dim))
    condition = Condition(jnp.asarray(cross, dtype), jnp.ones((1, TEXT_TOKENS), bool))
    num_frames = steps - max(config.delays)
    return lambda: generate_codes(lm, condition, num_frames=num_frames).block_until_ready()


def theirs(size: str, dtype: str, steps: int) -> Callable[[], None]:
    lm = OFFICIAL_MODELS[f"facebook/musicgen-{size}"].lm
    # One layer of text encoder and a codec that is never called: neither is being measured.
    text = transformers.T5Config(num_layers=1, d_model=lm.text_dim)
    audio = transformers.EncodecConfig(codebook_size=lm.card)
    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=lm.card,
        hidden_size=lm.dim,
        num_hidden_layers=lm.num_layers,
        num_attention_heads=lm.num_heads,
        ffn_dim=lm.ffn_dim,
        num_codebooks=lm.n_q,
        pad_token_id=None,
        bos_token_id=None,
    )
    config = transformers.MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=audio.to_dict(), decoder=decoder.to_dict()
    )
    # As `from_pretrained` would choose: only the codec knows no other way than eager.
    config._attn_implementation = "eager"
    config.decoder._attn_implementation = "sdpa"
    model = transformers.MusicgenForConditionalGeneration(config).eval()
    model = model.to(getattr(torch, dtype))
    model.generation_config.pad_token_id = model.generation_config.bos_token_id = lm.card
    model.generation_config.decoder_start_token_id = lm.card
    silence = SimpleNamespace(audio_values=torch.zeros(1, 1, 1))
    model.audio_encoder.decode = lambda *_, **__: silence
    ids = torch.randint(3, 32000, (1, TEXT_TOKENS))

    @torch.no_grad()
    def run() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=250,
            guidance_scale=3.0,
            max_new_tokens=steps,
        )

    return run


def busy_core_seconds() -> float:
    """Time that all cores together have spent working since the machine started (Linux)."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return float("nan")
    user, nice, system, _idle, _iowait, irq, softirq = (int(f) for f in fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def measure(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds a run takes, and how many cores other processes used during it."""
    busy, own, start = busy_core_seconds(), time.process_time(), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    foreign = (busy_core_seconds() - busy) - (time.process_time() - own)
    return seconds, max(foreign, 0.0) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    args = parser.parse_args()

    sides = {"musicgen_jax": ours, "transformers": theirs}
    runs = {name: build(args.size, args.dtype, args.steps) for name, build in sides.items()}
    for name, run in runs.items():
        print(f"{name}: first call (compilation included) {measure(run)[0]:.1f} s", flush=True)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    foreign: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(args.rounds):
        for name, run in runs.items():
            seconds, others = measure(run)
            speeds[name].append(args.steps / seconds)
            foreign[name].append(others)
            print(
                f"round {i}: {name} {speeds[name][-1]:.2f} steps/s, others used {others:.2f} cores",
                flush=True,
            )

    for name, values in speeds.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name}: median {middle:.2f} steps/s, {low:.2f} to {high:.2f}")
    pairs = zip(speeds["musicgen_jax"], speeds["transformers"], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"ratio (median of the rounds' ratios): {ratio:.2f}")
    if max(max(v) for v in foreign.values()) > 0.2:
        print("note: other processes were busy; do not quote these numbers")

    # The process may have been pinned (taskset), which a fair comparison on a busy machine needs:
    # torch's threads wait for each other, and one that is preempted stops them all.
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    record = {
        "benchmark": "lm_steps",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "device": f"{jax.devices()[0].device_kind}, {platform.machine()}, {cores}",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "flax", "torch", "transformers")
        },
        "size": args.size,
        "dtype": args.dtype,
        "steps": args.steps,
        "steps_per_second": {k: [round(v, 3) for v in vs] for k, vs in speeds.items()},
        "foreign_cores": {k: [round(v, 2) for v in vs] for k, vs in foreign.items()},
        "ratio": round(ratio, 3),
    }
    with args.results.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
