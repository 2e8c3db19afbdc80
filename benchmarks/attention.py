"""How fast attention with one query reads its cache, by length and number of rows.

Question: for which lengths should a cache be compiled? XLA on CPU uses several threads for
attention only above a certain size of each head, so a slightly longer cache can be faster to read.
The cache lengths of `runtime.tuning` were chosen with this script. Run it again for another
processor or XLA.

    python benchmarks/attention.py --length 256 384 512 528 640 1024 1504 --batch 1 16
"""

import statistics

import lm_steps
import measuring
from scaling import attention


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="clips at a time")
    parser.add_argument(
        "--length", type=int, nargs="+", default=[256, 384, 512, 528, 640, 1024, 1504], help="steps"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.length, args.rounds = [1], [16], 1
    lm = lm_steps.random_lm(lm_steps.lm_config(args.size, args.quick), "float32")
    step = 2 * lm.config.dim * lm.cache_dtype.itemsize  # bytes per row, step and layer
    rows = []
    for batch in args.batch:
        for length in args.length:
            run, size = attention(lm, 2 * batch, length)
            run()
            seconds = statistics.median(measuring.measure(run)[0] for _ in range(args.rounds))
            rate = size / seconds
            micros = 1e6 * 2 * batch * length * step / rate
            print(f"batch {batch}, {length} steps: {rate / 1e9:.1f} GB/s, {micros:.0f} us a layer")
            rows.append({"batch": batch, "length": length, "gb_per_second": round(rate / 1e9, 2)})
    return measuring.record("attention", args, size=args.size, rows=rows)


if __name__ == "__main__":
    main()
