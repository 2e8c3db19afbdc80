"""Steps per second of the language model, ours against transformers and audiocraft.

Question: how fast does the decode loop run at an official model's true shape on this machine, and
how much of the memory bandwidth does it use? All sides have random weights, guidance, 16 text
tokens and top-k 250, and run without text encoder and codec.

    python benchmarks/lm_steps.py --size small --dtype float32 --steps 500 --rounds 5
    python benchmarks/lm_steps.py --size small --dtype int8 --peer-dtype float32 --static
    python benchmarks/lm_steps.py --size large --dtype int8 --no-peer --steps 100
    python benchmarks/lm_steps.py --audiocraft CHECKOUT --no-transformers
    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/lm_steps.py --steps 50 --rounds 3

Every step must read all weights and the reserved key-value cache. These bytes, times the steps per
second, over the memory's bandwidth for reading or for copying, are the fraction of the roofline.
The bandwidth is measured in turn with the steps, round by round, because a shared machine's memory
speed varies. `--no-peer` also prints the peak memory of the process, next to that of weights and
cache.
"""

import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import audiocraft_peer
import jax
import jax.numpy as jnp
import measuring
import numpy as np
from flax import nnx

from musicgen_jax.config import OFFICIAL_MODELS, LMConfig
from musicgen_jax.generation.decode import example_keys, generate_codes
from musicgen_jax.generation.traffic import TEXT_TOKENS, bytes_per_step
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM
from musicgen_jax.runtime.tuning import tuning
from musicgen_jax.testing import random_params

DTYPES = ("float32", "bfloat16", "int8")


def lm_config(size: str, quick: bool = False) -> LMConfig:
    """The config of an official model, or with `quick` of a tiny one of the same form."""
    config = OFFICIAL_MODELS[f"facebook/musicgen-{size}"].lm
    tiny = {"dim": 64, "num_heads": 4, "num_layers": 2, "ffn_dim": 128, "card": 64, "text_dim": 16}
    return dataclasses.replace(config, **tiny) if quick else config


def random_lm(config: LMConfig, dtype: str, draw: Callable[[dict], dict] | None = None) -> LM:
    """A model with random weights.

    Args:
      config: its shape.
      dtype: of the weights: float32, bfloat16 or int8.
      draw: makes the arrays of nested dicts of shapes. Default: on the host, with a standard
        deviation of 0.02, leaf by leaf so that little memory is used.
    """
    draw = draw or partial(random_params, std=0.02)
    compute = tuning().compute_dtype
    compute = compute if dtype == "int8" else dtype
    make = lambda: LM(config, dtype=compute, param_dtype=dtype, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, state = nnx.split(nnx.eval_shape(make))
    nnx.replace_by_pure_dict(state, draw(nnx.to_pure_dict(state)))
    return nnx.merge(graphdef, state)


def ours(lm: LM, batch: int, steps: int) -> Callable[[], jax.Array]:
    dim = lm.config.dim
    cross = np.random.default_rng(0).normal(size=(batch, TEXT_TOKENS, dim))
    text = Embedded(jnp.asarray(cross, lm.dtype), jnp.ones((batch, TEXT_TOKENS), bool))
    condition = Condition(text)
    num_frames = steps - max(lm.config.delays)
    keys = example_keys(0, batch)
    return lambda: generate_codes(lm, condition, num_frames=num_frames, keys=keys)


def theirs(
    config: LMConfig, dtype: str, batch: int, steps: int, static: bool, device: str = "cpu"
) -> Callable:
    """Transformers' model of the same shape, on a device of torch's."""
    import torch
    import transformers

    # A text encoder of one layer and a codec that is never called: neither is measured.
    text = transformers.T5Config(num_layers=1, d_model=config.text_dim)
    audio = transformers.EncodecConfig(codebook_size=config.card)
    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=config.card,
        hidden_size=config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        num_codebooks=config.n_q,
        pad_token_id=None,
        bos_token_id=None,
    )
    whole = transformers.MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=audio.to_dict(), decoder=decoder.to_dict()
    )
    # The choice of `from_pretrained`: only the codec has no other way than eager.
    whole._attn_implementation = "eager"
    whole.decoder._attn_implementation = "sdpa"
    with torch.device(device):
        model = transformers.MusicgenForConditionalGeneration(whole).eval()
        model = model.to(getattr(torch, dtype))
    generation = model.generation_config
    generation.pad_token_id = generation.bos_token_id = config.card
    generation.decoder_start_token_id = config.card
    silence = SimpleNamespace(audio_values=torch.zeros(1, 1, 1, device=device))
    model.audio_encoder.decode = lambda *_, **__: silence
    if static:
        model.decoder.forward = torch.compile(model.decoder.forward)
    ids = torch.randint(3, 32000, (batch, TEXT_TOKENS), device=device)

    @torch.no_grad()
    def run() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=min(250, config.card),
            guidance_scale=3.0,
            max_new_tokens=steps,
            **({"cache_implementation": "static"} if static else {}),
        )
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=1, help="clips at a time")
    parser.add_argument("--peer-dtype", choices=DTYPES[:2], help="by default ours, or float32")
    parser.add_argument("--static", action="store_true", help="also a static cache, compiled")
    parser.add_argument("--audiocraft", type=Path, help="a checkout of it, measured too")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--no-peer", action="store_true", help="ours alone, for its memory")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.rounds = 8, 1
    peer = args.peer_dtype or (args.dtype if args.dtype in DTYPES[:2] else "float32")
    config = lm_config(args.size, args.quick)

    lm = random_lm(config, args.dtype)
    moved = bytes_per_step(lm, args.batch, args.steps)
    runs: dict[str, Callable] = {"musicgen_jax": ours(lm, args.batch, args.steps)}
    if args.no_peer:
        args.no_transformers, args.audiocraft = True, None
    if not args.no_transformers:
        runs["transformers"] = theirs(config, peer, args.batch, args.steps, False)
        if args.static:
            runs["transformers static"] = theirs(config, peer, args.batch, args.steps, True)
    if args.audiocraft:
        shape = config, peer, args.batch, args.steps, TEXT_TOKENS
        runs["audiocraft"] = audiocraft_peer.generation(args.audiocraft, *shape)
    if not args.no_peer:
        size, times = 1 << (22 if args.quick else 29), 16
        runs |= measuring.memory_streams(size, times)
    result = measuring.in_turn(runs, args.rounds)
    peak = measuring.peak_memory() if args.no_peer else None
    streams = {name: result.pop(name) for name in ("reading", "copying") if name in result}
    speeds = measuring.summary(result, args.steps, "steps", "musicgen_jax")
    gbs = (moved["weights"] + moved["cache"]) * args.steps / 1e9
    own = [gbs / seconds for seconds in result["musicgen_jax"]["seconds"]]
    print(
        f"{moved['weights'] / 1e9:.3f} GB of weights and {moved['cache'] / 1e9:.3f} GB of cache a "
        f"step: {statistics.median(own):.1f} GB/s"
    )
    roofline = {}
    for name, stream in streams.items():
        rates = [size * times / 1e9 / seconds for seconds in stream["seconds"]]
        fraction = statistics.median(a / b for a, b in zip(own, rates, strict=True))
        roofline[name] = {
            "gb_per_second": [
                round(v, 2) for v in (statistics.median(rates), min(rates), max(rates))
            ],
            "fraction": round(fraction, 3),
        }
        print(f"{name} {roofline[name]['gb_per_second'][0]:.1f} GB/s: {fraction:.0%} of it")
    if peak:
        print(
            f"peak memory {peak / 1e9:.2f} GB, all weights {moved['held'] / 1e9:.2f} GB and one "
            f"cache {moved['cache'] / 1e9:.2f} GB among it"
        )
    return measuring.record(
        "lm_steps",
        args,
        size=args.size,
        dtype=args.dtype,
        peer_dtype=None if args.no_peer else peer,
        batch=args.batch,
        steps=args.steps,
        **speeds,
        bytes_per_step=moved,
        gb_per_second=round(statistics.median(own), 2),
        roofline=roofline,
        peak_bytes=peak,
        sides=result,
    )


if __name__ == "__main__":
    main()
