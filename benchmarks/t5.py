"""Seconds that T5 takes to encode prompts, ours against transformers, in one run.

Question: how long does the text take before the first step of music? Both sides run t5-base's
encoder with random weights, in float32, on prompts of 16 tokens.

    python benchmarks/t5.py --batch 1 8 --rounds 10
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measuring
import numpy as np
from flax import nnx

from musicgen_jax.config import OFFICIAL_MODELS, T5Config
from musicgen_jax.nn.t5 import T5Encoder


def t5_config(quick: bool = False) -> T5Config:
    """The config of MusicGen's text encoder, or with `quick` of a tiny one."""
    config = OFFICIAL_MODELS["facebook/musicgen-small"].t5
    tiny = {"num_layers": 2, "d_model": 32, "d_ff": 64, "num_heads": 2, "d_kv": 16}
    return dataclasses.replace(config, **tiny, vocab_size=100) if quick else config


def sides(config: T5Config, batch: int, tokens: int) -> dict[str, Callable]:
    import torch
    import transformers

    ids = np.random.default_rng(0).integers(3, config.vocab_size, (batch, tokens))
    encoder = T5Encoder(config, rngs=nnx.Rngs(0))
    run = jax.jit(lambda model, ids, mask: model(ids, mask))
    x, mask = jnp.asarray(ids, jnp.int32), jnp.ones(ids.shape, bool)
    peer = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
        )
    ).eval()
    torch_ids = torch.from_numpy(ids)

    def peer_run():
        with torch.no_grad():
            peer(input_ids=torch_ids, attention_mask=torch.ones_like(torch_ids))

    return {"musicgen_jax": lambda: run(encoder, x, mask), "transformers": peer_run}


def main(argv: list[str] | None = None) -> list[dict]:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="prompts at a time")
    parser.add_argument("--tokens", type=int, default=16)
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.rounds = [2], 1
    config, lines = t5_config(args.quick), []
    for batch in args.batch:
        print(f"--- {batch} prompts of {args.tokens} tokens")
        result = measuring.in_turn(sides(config, batch, args.tokens), args.rounds)
        speeds = measuring.summary(result, batch, "prompts", "musicgen_jax")
        values = {"batch": batch, "tokens": args.tokens, **speeds, "sides": result}
        lines.append(measuring.record("t5", args, **values))
    return lines


if __name__ == "__main__":
    main()
