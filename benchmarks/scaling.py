"""Steps per second against cache length, batch and model size, beside what a cost model predicts.

Question: what does a step cost, and why? The model of it has three terms and three constants, each
measured by itself in the same run, none fitted to the steps that it predicts:

    seconds = sum over products of a weight's bytes / R(rows)     weights streamed by `linear`
            + bytes of the key-value cache / A(rows, length)      attention over what is reserved
            + layers * O                                          everything small between them

R and A depend on how many rows share a read, so they are measured at each number of rows; O is the
time of a layer whose weights and cache are next to nothing. Every step is that of batch B with
guidance: 2 B rows, random weights of an official shape.

    python benchmarks/scaling.py --size small --dtype float32 --batch 1 4 --length 250 1500
    python benchmarks/scaling.py --size medium --dtype int8 --batch 1 --length 250
"""

import dataclasses
import itertools
import statistics

import jax
import jax.numpy as jnp
import lm_steps
import measuring
import numpy as np

from musicgen_jax.conditioning.condition import Condition
from musicgen_jax.generate import cache_lengths, stream_codes
from musicgen_jax.linear import linear, weight_param
from musicgen_jax.lm import LM
from musicgen_jax.transformer import attend

COPIES = 8  # of a weight or a cache, so that none is still in a processor's own cache


def _seconds(run, rounds: int) -> float:
    jax.block_until_ready(run())
    return statistics.median(measuring.measure(run)[0] for _ in range(rounds))


def product_rate(lm: LM, rows: int, shape: tuple[int, int], rounds: int) -> float:
    """Bytes of weights a second through `linear`, each product waiting for the one before."""
    rng = np.random.default_rng(0)
    like = lm.transformer.layers[0].linear1.weight
    param = jnp.int8 if hasattr(like, "int8") else like[...].dtype
    draw = lambda: weight_param(jnp.asarray(rng.standard_normal(shape, np.float32)), param)[...]  # noqa: E731
    weights = [draw() for _ in range(COPIES)]
    x = jnp.asarray(rng.standard_normal((rows, shape[1]), np.float32), lm.dtype)

    @jax.jit
    def run(x, weights):
        total = jnp.zeros(())
        for weight in weights:
            y = linear(x + total.astype(x.dtype), weight)
            total = y[0, 0].astype(jnp.float32) * 1e-9
        return total

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    return size / _seconds(lambda: run(x, weights), rounds)


def cache_rate(lm: LM, rows: int, length: int, rounds: int) -> float:
    """Bytes of keys and values a second through attention of one query."""
    config = lm.config
    rng = np.random.default_rng(0)
    shape = rows, config.num_heads, length, config.dim // config.num_heads
    draw = lambda: jnp.asarray(rng.standard_normal(shape, np.float32), lm.cache_dtype)  # noqa: E731
    caches = [(draw(), draw()) for _ in range(COPIES)]
    q = jnp.ones((*shape[:2], 1, shape[3]), lm.dtype)
    mask = jnp.arange(length) < length - 1

    @jax.jit
    def run(q, caches):
        for k, v in caches:
            q = attend(q, k, v, mask)
        return q

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(caches))
    return size / _seconds(lambda: run(q, caches), rounds)


def layer_overhead(lm: LM, batch: int, rounds: int) -> float:
    """Seconds a step spends per layer on what is neither weights nor cache."""
    config = dataclasses.replace(
        lm.config, dim=lm.config.num_heads * 4, ffn_dim=32, card=64, text_dim=16
    )
    int8 = hasattr(lm.transformer.layers[0].linear1.weight, "int8")
    tiny = lm_steps.random_lm(config, "int8" if int8 else jnp.dtype(lm.dtype).name)
    return 1 / measured(tiny, batch, 250, rounds) / config.num_layers


def measured(lm: LM, batch: int, length: int, rounds: int, steps: int = 12) -> float:
    """Steps a second in a cache for `length` steps, without running all of them."""
    cross = np.random.default_rng(0).normal(size=(batch, lm_steps.TEXT_TOKENS, lm.config.dim))
    condition = Condition(
        jnp.asarray(cross, lm.dtype), jnp.ones((batch, lm_steps.TEXT_TOKENS), bool)
    )
    frames = length - max(lm.config.delays)
    stretches = stream_codes(lm, condition, num_frames=frames, chunk=steps, grow=False)
    for _ in range(2):  # compiled, and past the delay
        next(stretches)
    seconds = [measuring.measure(lambda: next(stretches))[0] for _ in range(rounds)]
    stretches.close()
    return steps / statistics.median(seconds)


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--dtype", default="float32", choices=lm_steps.DTYPES)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--length", type=int, nargs="+", default=[250, 1500], help="steps")
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.length, args.rounds = [1], [250], 1
    config = lm_steps.lm_config(args.size, args.quick)
    lm = lm_steps.random_lm(config, args.dtype)
    shape = (config.ffn_dim, config.dim)
    rows = []
    rates = {b: product_rate(lm, 2 * b, shape, args.rounds) for b in args.batch}
    overheads = {b: layer_overhead(lm, b, args.rounds) for b in args.batch}
    for batch, length in itertools.product(args.batch, args.length):
        reserved = cache_lengths(length)[-1]
        moved = lm_steps.bytes_per_step(lm, batch, length, reserved)
        attention = cache_rate(lm, 2 * batch, reserved, args.rounds)
        seconds = (
            moved["weights"] / rates[batch]
            + moved["cache"] / attention
            + config.num_layers * overheads[batch]
        )
        real = measured(lm, batch, length, args.rounds)
        row = {
            "batch": batch,
            "cache": reserved,
            "weights_gb": round(moved["weights"] / 1e9, 3),
            "cache_gb": round(moved["cache"] / 1e9, 3),
            "product_gb_per_second": round(rates[batch] / 1e9, 2),
            "attention_gb_per_second": round(attention / 1e9, 2),
            "overhead_ms": round(1e3 * config.num_layers * overheads[batch], 2),
            "predicted": round(1 / seconds, 2),
            "measured": round(real, 2),
            "error": round(1 / seconds / real - 1, 3),
        }
        rows.append(row)
        print(
            f"{args.size} {args.dtype} batch {batch}, cache {reserved}: predicted "
            f"{row['predicted']} steps/s, measured {row['measured']} ({row['error']:+.0%})",
            flush=True,
        )
    return measuring.record("scaling", args, size=args.size, dtype=args.dtype, rows=rows)


if __name__ == "__main__":
    main()
