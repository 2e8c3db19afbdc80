"""Training steps per second of the language model, ours against transformers, in one run.

Question: how fast are the loss and its gradient at an official model's shape on this machine? Both
sides get the same codes and text states and random weights, and use the delay pattern and the mean
cross-entropy. Text encoder, codec and optimizer are left out on both sides.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/train_step.py --size small --frames 50
    python benchmarks/train_step.py --size small --frames 500 --batch 4 --remat --no-peer

The unit of work is a token: batch size times codebooks times frames.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import measuring
import numpy as np
from flax import nnx
from lm_steps import lm_config

from musicgen_jax.config import LMConfig
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM, compute_predictions
from musicgen_jax.testing import random_params
from musicgen_jax.training.layout import Layout
from musicgen_jax.training.losses import codebook_cross_entropy

TEXT_TOKENS = 16


def ours(config: LMConfig, codes: np.ndarray, text: np.ndarray, dtype: str, remat: bool):
    shape = nnx.eval_shape(lambda: LM(config, dtype=dtype, rngs=nnx.Rngs(0)))
    shape.transformer.wrap_block = Layout().around(config, dtype, remat)
    graphdef, state = nnx.split(shape, nnx.Param)
    params = random_params(nnx.to_pure_dict(state), std=0.02)
    mask = jnp.ones(text.shape[:2], bool)

    def loss(params):
        lm = nnx.merge(graphdef, params)
        condition = Condition(Embedded(lm.text_conditioner(jnp.asarray(text), mask), mask))
        logits, predicted = compute_predictions(lm, jnp.asarray(codes), condition)
        return codebook_cross_entropy(logits, jnp.asarray(codes), predicted).mean()

    step = jax.jit(jax.value_and_grad(loss))
    return lambda: step(params)


def theirs(config: LMConfig, codes: np.ndarray, text: np.ndarray, dtype: str) -> Callable:
    import torch
    import transformers

    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=config.card,
        hidden_size=config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        num_codebooks=config.n_q,
        pad_token_id=config.card,
        bos_token_id=config.card,
        dropout=0.0,
        attn_implementation="sdpa",
    )
    model = transformers.MusicgenForCausalLM(decoder).train()
    projection = torch.nn.Linear(config.text_dim, config.dim)
    hidden = torch.from_numpy(text)
    batch, books, frames = codes.shape
    # Its labels are delayed already; -100 marks positions without a target.
    labels = np.full((batch, frames, books), -100)
    for book, delay in enumerate(config.delays):
        labels[:, delay:, book] = codes[:, book, : frames - delay]
    labels = torch.from_numpy(labels)

    def run() -> float:
        model.zero_grad()
        projection.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            out = model(
                encoder_hidden_states=projection(hidden),
                encoder_attention_mask=torch.ones(hidden.shape[:2], dtype=torch.long),
                labels=labels,
            )
        out.loss.backward()
        return float(out.loss.detach())

    return run


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--remat", action="store_true", help="ours computes blocks twice")
    parser.add_argument("--no-peer", action="store_true", help="ours alone, for its memory")
    args = parser.parse_args(argv)
    if args.quick:
        args.frames, args.rounds = 12, 1
    config = lm_config(args.size, args.quick)
    rng = np.random.default_rng(0)
    codes = rng.integers(config.card, size=(args.batch, config.n_q, args.frames))
    text = rng.standard_normal((args.batch, TEXT_TOKENS, config.text_dim)).astype(np.float32)

    runs: dict[str, Callable] = {
        "musicgen_jax": ours(config, codes.astype(np.int32), text, args.dtype, args.remat)
    }
    if not args.no_peer:
        runs["transformers"] = theirs(config, codes, text, args.dtype)
    result = measuring.in_turn(runs, args.rounds)
    peak = measuring.peak_memory() if args.no_peer else None
    speeds = measuring.summary(result, codes.size, "tokens", "musicgen_jax")
    return measuring.record(
        "train_step",
        args,
        size="quick" if args.quick else args.size,
        batch=args.batch,
        frames=args.frames,
        dtype=args.dtype,
        remat=args.remat,
        peak_memory=peak,
        **speeds,
        runs=result,
    )


if __name__ == "__main__":
    main()
