"""What a precision costs: the bundled model's cross-entropy by codebook, against float32.

Question: how much worse does the model predict real music when its matrices (and on a CPU also the
activations) are rounded to int8, or when the key-value cache has eight bits? The model reads
held-out clips of the composer, through the codec, step by step as in generation. The script prints
the nats per token of each codebook, and how often the likeliest token is that of float32.

    python benchmarks/precision_quality.py --n 40 --figure precision.png
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import measuring
import numpy as np

from musicgen_jax.model import MusicGen
from musicgen_jax.nn import patterns

SIDES: dict[str, dict] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "float8 cache": {"dtype": "float32", "cache_dtype": "float8_e4m3fn"},
}


def step_logits(model: MusicGen, codes: np.ndarray, prompts: list[str | None]) -> np.ndarray:
    """Logits of codes [B, K, T], step by step, float32 [B, K, T, V]; NaN where there are none."""
    lm, condition = model.lm, model.text_condition(prompts)
    pattern = patterns.to_steps(jnp.asarray(codes), lm.config.delays, lm.config.special_token)

    @jax.jit
    def read(lm, steps, condition):
        cross_kv = lm.cross_kv(condition)
        cache = lm.init_cache(steps.shape[0], lm.prefix_length(condition) + steps.shape[2])

        def advance(cache, item):
            tokens, step = item
            logits, cache = lm.decode(tokens, step, cache, cross_kv, condition)
            return cache, logits

        items = jnp.moveaxis(steps, 2, 0), jnp.arange(steps.shape[2])
        return jnp.moveaxis(jax.lax.scan(advance, cache, items)[1], 0, 2)  # [B, K, S, V]

    logits = np.asarray(read(lm, pattern, condition))
    aligned = np.full((*codes.shape, logits.shape[-1]), np.nan, np.float32)
    for k, delay in enumerate(lm.config.delays):
        aligned[:, k] = logits[:, k, delay : delay + codes.shape[2]]
    return aligned


def compare(
    models: dict[str, MusicGen], codes: np.ndarray, prompts: list[str | None], batch: int
) -> dict[str, dict[str, list[float]]]:
    """Nats per token of each codebook for each model, and how often it agrees with the first.

    Args:
      models: by name; the first is the reference.
      codes: int [N, K, T], to predict.
      prompts: N texts.
      batch: clips at a time.
    """
    nats = {name: np.zeros(codes.shape[1]) for name in models}
    agreed = {name: np.zeros(codes.shape[1]) for name in models}
    for at in range(0, len(codes), batch):
        part, best = codes[at : at + batch], None
        for name, model in models.items():
            logits = step_logits(model, part, prompts[at : at + batch]).astype(np.float64)
            top = logits.max(-1, keepdims=True)
            total = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
            cost = total - np.take_along_axis(logits, part[..., None], -1)[..., 0]
            nats[name] += cost.sum((0, 2))
            likeliest = logits.argmax(-1)
            best = likeliest if best is None else best
            agreed[name] += (likeliest == best).sum((0, 2))
    count = codes.shape[0] * codes.shape[2]
    return {
        name: {
            "nats": (nats[name] / count).round(4).tolist(),
            "same_likeliest": (agreed[name] / count).round(4).tolist(),
        }
        for name in models
    }


def draw(path: Path, result: dict[str, dict[str, list[float]]]) -> None:
    """Draws the cross-entropies by codebook as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(result)
    for i, (name, values) in enumerate(result.items()):
        places = np.arange(len(values["nats"])) + width * (i - (len(result) - 1) / 2)
        axes.bar(places, values["nats"], width * 0.95, label=name)
    axes.set(xlabel="codebook", ylabel="nats per token", title="bundled model, unseen clips")
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
    from nano_clips import through_codec
    from nano_requests import make_request

    from musicgen_jax.nano.pieces import piece

    models = {name: MusicGen.from_pretrained("nano", **types) for name, types in SIDES.items()}
    full = models["float32"]
    requests = [make_request(i) for i in range(args.n)]
    frames = int(args.duration * full.frame_rate)
    audio = np.stack([piece(request.seed, frames)[1] for request in requests])
    codes = through_codec(full, audio, args.batch)[1]
    result = compare(models, codes, [request.prompt for request in requests], args.batch)
    for name, values in result.items():
        books = " ".join(f"{v:.4f}" for v in values["nats"])
        same = float(np.mean(values["same_likeliest"]))
        print(f"{name}: nats {books}, mean {np.mean(values['nats']):.4f}; same token {same:.1%}")
    if args.figure:
        draw(args.figure, result)
    about = {"n": args.n, "duration": args.duration}
    return measuring.record("precision_quality", args, **about, sides=result)


if __name__ == "__main__":
    main()
