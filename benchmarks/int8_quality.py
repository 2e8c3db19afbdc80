"""What int8 costs in quality: cross-entropy of the bundled model by codebook, int8 against float32.

Question: how much worse does the model predict real music when its matrices (and on a CPU what is
multiplied with them) are rounded to int8? Clips of the composer that training has not seen, through
the codec; nats per token of each codebook under either model, and how often both would pick the
same likeliest token.

    python benchmarks/int8_quality.py --n 40 --figure int8.png
"""

import importlib.util
from pathlib import Path

import measuring
import numpy as np

from musicgen_jax.model import MusicGen


def compare(
    full: MusicGen, small: MusicGen, codes: np.ndarray, prompts: list[str | None], batch: int
) -> dict[str, list[float]]:
    """Nats per token of each book under both, and the share of tokens on which they agree.

    Args:
      full: the float32 model.
      small: the int8 model.
      codes: int [N, K, T], what is predicted.
      prompts: N texts.
      batch: clips at a time.
    """
    books = codes.shape[1]
    sums = {"float32": np.zeros(books), "int8": np.zeros(books)}
    agreed, counts = np.zeros(books), np.zeros(books)
    for at in range(0, len(codes), batch):
        part, texts = codes[at : at + batch], prompts[at : at + batch]
        best = []
        for name, model in (("float32", full), ("int8", small)):
            logits = np.asarray(model.lm_logits(part, texts), np.float64)  # [B, K, T, V]
            predicted = np.isfinite(logits[..., 0])
            logits = np.nan_to_num(logits)
            top = logits.max(-1, keepdims=True)
            total = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
            nats = total - np.take_along_axis(logits, part[..., None], -1)[..., 0]
            sums[name] += np.where(predicted, nats, 0).sum((0, 2))
            best.append(logits.argmax(-1))
        agreed += ((best[0] == best[1]) & predicted).sum((0, 2))
        counts += predicted.sum((0, 2))
    return {
        **{name: (total / counts).round(4).tolist() for name, total in sums.items()},
        "same_likeliest": (agreed / counts).round(4).tolist(),
    }


def draw(path: Path, result: dict[str, list[float]]) -> None:
    """Bars of both cross-entropies by book."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes, books = figure.subplots(), np.arange(len(result["int8"]))
    for i, name in enumerate(("float32", "int8")):
        axes.bar(books + 0.4 * i - 0.2, result[name], 0.38, label=name)
    axes.set(xlabel="codebook", ylabel="nats per token", title="bundled model, unseen clips")
    axes.set_xticks(books)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--n", type=int, default=40, help="clips")
    parser.add_argument("--duration", type=float, default=8.0, help="seconds of each")
    parser.add_argument("--batch", type=int, default=8, help="clips at a time")
    parser.add_argument("--figure", type=Path, help="a PNG file (needs matplotlib)")
    args = parser.parse_args(argv)
    if args.figure and importlib.util.find_spec("matplotlib") is None:
        parser.error("--figure needs matplotlib: pip install 'musicgen-jax[plot]'")
    if args.quick:
        args.n, args.duration, args.batch = 2, 4.5, 2
    from nano_report import make_request, piece, through_codec

    full, small = (MusicGen.from_pretrained("nano", dtype=dtype) for dtype in ("float32", "int8"))
    requests = [make_request(i) for i in range(args.n)]
    frames = int(args.duration * full.frame_rate)
    audio = np.stack([piece(request.seed, frames)[1] for request in requests])
    codes = through_codec(full, audio, args.batch)[1]
    result = compare(full, small, codes, [request.prompt for request in requests], args.batch)
    for name, values in result.items():
        print(f"{name}: {' '.join(f'{v:.4f}' for v in values)}, mean {np.mean(values):.4f}")
    if args.figure:
        draw(args.figure, result)
    return measuring.record("int8_quality", args, n=args.n, duration=args.duration, **result)


if __name__ == "__main__":
    main()
