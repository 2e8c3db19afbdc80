"""How fast a weight streams through one product, by formulation, dtype and number of rows.

Question: which way of writing `x @ w.T` is the fastest on this machine? `linear` follows the
results of this script; run it again for another processor or XLA. Each way cycles through more
weights than the caches hold, and all ways run in turn. As in a feed-forward layer, the output of
one product is the input of the next, so a way that must transpose its result pays for that.

    python benchmarks/products.py --rows 1 2 4 8 16 64 --dtype float32 bfloat16 int8
"""

import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measuring
import numpy as np
from jax import lax

from musicgen_jax.nn import linear

WAYS: dict[str, Callable] = {
    "one product": linear._product,
    "halves as a batch": linear._halved_product,
    "rows twice": linear._doubled_product,
    "a mat-vec per row": lambda rows, w: jnp.stack(
        [
            lax.dot_general(
                w, row, (((1,), (0,)), ((), ())), preferred_element_type=linear._accumulator(w)
            )
            for row in rows
        ]
    ),
}


def measured(
    dtype: str, rows: int, outputs: int, inputs: int, weights: int, rounds: int
) -> dict[str, list[float]]:
    """Gigabytes of weights per second of each way: median, lowest and highest."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        std = 30 if dtype == "int8" else shape[-1] ** -0.5
        return jnp.asarray(rng.standard_normal(shape, np.float32) * std, dtype)

    x = draw(rows, inputs)
    matrices = [draw(*((inputs, outputs) if i % 2 else (outputs, inputs))) for i in range(weights)]
    few = {"rows twice": 1, "a mat-vec per row": 16}  # largest number of rows where they make sense
    ways = {name: way for name, way in WAYS.items() if rows <= few.get(name, rows)}
    runs = {}
    for name, way in ways.items():

        @jax.jit
        def run(x, ws, way=way):
            for w in ws:
                x = jnp.maximum(way(x, w).astype(dtype), 0)
            return x

        runs[name] = lambda run=run: run(x, matrices)
        jax.block_until_ready(runs[name]())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(measuring.measure(run)[0])
    size = sum(w.nbytes for w in matrices) / 1e9
    return {
        name: [round(size / s, 2) for s in (statistics.median(v), max(v), min(v))]
        for name, v in seconds.items()
    }


def main(argv: list[str] | None = None) -> list[dict]:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 16, 64, 128, 192])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--shape", type=int, nargs=2, default=[4096, 1024], help="outputs, inputs")
    parser.add_argument("--weights", type=int, default=64, help="how many, up and down")
    args = parser.parse_args(argv)
    if args.quick:
        args.rows, args.shape, args.weights, args.rounds = [1, 2], [8, 16], 2, 1
    lines = []
    for dtype in args.dtype:
        for rows in args.rows:
            speeds = measured(dtype, rows, *args.shape, args.weights, args.rounds)
            best = ", ".join(f"{name} {v[0]:.1f}" for name, v in speeds.items())
            print(f"{dtype}, {rows} rows, GB/s of weights: {best}", flush=True)
            lines.append({"dtype": dtype, "rows": rows, "gb_per_second": speeds})
    shape = {"outputs": args.shape[0], "inputs": args.shape[1]}
    return [measuring.record("products", args, **shape, measured=lines)]


if __name__ == "__main__":
    main()
