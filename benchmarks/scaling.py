"""Steps per second by cache length, batch and model size, next to the prediction of a cost model.

Question: what does a step cost, and why? The cost model has three terms and three constants. Each
constant is measured by itself in the same run, and none is fitted to the steps that it predicts:

    seconds = sum over products of a weight's bytes / R(rows)     weights streamed by `linear`
            + bytes of the key-value cache / A(rows, length)      attention over the reserved cache
            + layers * O                                          everything else in a layer

R and A depend on how many rows share a read, so they are measured at each number of rows. O is the
time of a layer with tiny weights and a tiny cache. All three and the step itself are measured in
turn, round by round, because the speed of a shared machine varies. A step has batch B with
guidance, so 2 B rows, and random weights of an official shape.

    python benchmarks/scaling.py --size small --dtype float32 --batch 1 4 --length 250 1500
    python benchmarks/scaling.py --size medium --dtype int8 --batch 1 --length 250
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import lm_steps
import measuring
import numpy as np

from musicgen_jax.generation.decode import example_keys, stream_codes
from musicgen_jax.generation.plan import cache_lengths
from musicgen_jax.nn.attention import attend
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.linear import linear
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.weights import weight_param
from musicgen_jax.runtime import memory

COPIES = 16  # of a weight or a cache, so that the processor's cache holds none of them
STEPS = 12  # a turn
SHORTEST = 250  # steps of the tiny cache: its softmax is part of A already


def products(lm: LM, rows: int, shape: tuple[int, int]) -> tuple[Callable, int]:
    """A run of `linear` through weights, each on the previous result; and their bytes."""
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

    return lambda: run(x, weights), memory.nbytes(weights)


def attention(lm: LM, rows: int, length: int) -> tuple[Callable, int]:
    """A run of attention with one query on several caches in turn; and their bytes."""
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

    return lambda: run(q, caches), memory.nbytes(caches)


def almost_empty(lm: LM) -> LM:
    """A model with as many layers, but tiny weights and a tiny cache."""
    config = dataclasses.replace(
        lm.config, dim=lm.config.num_heads * 4, ffn_dim=32, card=64, text_dim=16
    )
    int8 = hasattr(lm.transformer.layers[0].linear1.weight, "int8")
    return lm_steps.random_lm(config, "int8" if int8 else jnp.dtype(lm.dtype).name)


def steps(lm: LM, batch: int, length: int) -> Iterator[np.ndarray]:
    """A run of STEPS steps with a cache for `length` steps, after the first runs."""
    cross = np.random.default_rng(0).normal(size=(batch, lm_steps.TEXT_TOKENS, lm.config.dim))
    mask = jnp.ones((batch, lm_steps.TEXT_TOKENS), bool)
    condition = Condition(Embedded(jnp.asarray(cross, lm.dtype), mask))
    frames, lengths = length - max(lm.config.delays), cache_lengths(length, lm.tuning)[-1:]
    keys = example_keys(0, batch)
    stretches = stream_codes(
        lm, condition, num_frames=frames, keys=keys, chunk=STEPS, lengths=lengths
    )
    for _ in range(2):  # compile, and pass the delay
        next(stretches)
    return stretches


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
    tiny = almost_empty(lm)
    rows = []
    for batch, length in itertools.product(args.batch, args.length):
        reserved = cache_lengths(length, lm.tuning)[-1]
        moved = lm_steps.bytes_per_step(lm, batch, length, reserved)
        product, weight_bytes = products(lm, 2 * batch, (config.ffn_dim, config.dim))
        attending, cache_bytes = attention(lm, 2 * batch, reserved)
        empty, real = steps(tiny, batch, SHORTEST), steps(lm, batch, length)
        runs = {
            "product": product,
            "attention": attending,
            "empty": lambda empty=empty: next(empty),
            "real": lambda real=real: next(real),
        }
        result = {
            name: np.asarray(side["seconds"])
            for name, side in measuring.in_turn(runs, args.rounds).items()
        }
        empty.close()
        real.close()
        product_rate = weight_bytes / result["product"]
        attention_rate = cache_bytes / result["attention"]
        overhead = result["empty"] / STEPS
        predicted = moved["weights"] / product_rate + moved["cache"] / attention_rate + overhead
        measured = result["real"] / STEPS
        row = {
            "batch": batch,
            "cache": reserved,
            "weights_gb": round(moved["weights"] / 1e9, 3),
            "cache_gb": round(moved["cache"] / 1e9, 3),
            "product_gb_per_second": round(np.median(product_rate) / 1e9, 2),
            "attention_gb_per_second": round(np.median(attention_rate) / 1e9, 2),
            "overhead_ms": round(1e3 * np.median(overhead), 2),
            "predicted": round(1 / np.median(predicted), 2),
            "measured": round(1 / np.median(measured), 2),
            "error": round(np.median(measured / predicted) - 1, 3),
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
