"""Seconds from a prompt to music, and to its first sound, at an official size.

Question: how long does a user wait? The script runs text encoder, language model and codec with
random weights of an official shape, for one clip with guidance. It measures the first call in a
fresh process (with compilation), warm calls, the time until `model.stream` returns its first second
of audio, and the peak memory. To keep the memory apart, `--peer` measures transformers in a run of
its own.

    python benchmarks/end_to_end.py --size small --dtype int8 --duration 10 --rounds 3
    python benchmarks/end_to_end.py --size small --duration 30 --rounds 3
    python benchmarks/end_to_end.py --size small --duration 10 --rounds 3 --peer
"""

import time
from collections.abc import Callable

import jax
import measuring
import numpy as np
from codec import peer_config

from musicgen_jax import testing
from musicgen_jax.config import OFFICIAL_MODELS
from musicgen_jax.model import MusicGen

TEXT = "a calm waltz on the piano, with a slow and soft accompaniment of strings"


def model(size: str, dtype: str, quick: bool) -> MusicGen:
    """A model of an official shape with random weights."""
    config = testing.DEBUG if quick else OFFICIAL_MODELS[f"facebook/musicgen-{size}"]
    return testing.random_model(config, std=0.3 if quick else 0.02, dtype=dtype)


def first_sound(model: MusicGen, duration: float) -> float:
    """Seconds until the first chunk of a stream."""
    start = time.perf_counter()
    next(iter(model.stream([TEXT], duration=duration)))
    return time.perf_counter() - start


def peer(size: str, dtype: str, duration: float, device: str = "cpu") -> Callable[[], None]:
    """Transformers' whole model of the same shape, with random weights, on a device of torch's."""
    import torch
    import transformers

    config = OFFICIAL_MODELS[f"facebook/musicgen-{size}"]
    lm, t5, codec = config.lm, config.t5, config.encodec
    whole = transformers.MusicgenConfig(
        text_encoder=transformers.T5Config(
            vocab_size=t5.vocab_size,
            d_model=t5.d_model,
            d_kv=t5.d_kv,
            d_ff=t5.d_ff,
            num_layers=t5.num_layers,
            num_heads=t5.num_heads,
        ).to_dict(),
        audio_encoder=peer_config(codec).to_dict(),
        decoder=transformers.MusicgenDecoderConfig(
            vocab_size=lm.card,
            hidden_size=lm.dim,
            num_hidden_layers=lm.num_layers,
            num_attention_heads=lm.num_heads,
            ffn_dim=lm.ffn_dim,
            num_codebooks=lm.n_q,
            pad_token_id=None,
            bos_token_id=None,
        ).to_dict(),
    )
    whole._attn_implementation = "eager"  # the codec has no other way
    whole.decoder._attn_implementation = "sdpa"
    with torch.device(device):
        music = transformers.MusicgenForConditionalGeneration(whole).eval()
        music = music.to(getattr(torch, dtype))
    generation = music.generation_config
    generation.pad_token_id = generation.bos_token_id = lm.card
    generation.decoder_start_token_id = lm.card
    ids = torch.randint(3, t5.vocab_size, (1, 16), device=device)
    tokens = int(duration * codec.frame_rate) + max(lm.delays)

    @torch.no_grad()
    def run() -> None:
        music.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=250,
            guidance_scale=3.0,
            max_new_tokens=tokens,
        )
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", default="small", choices=["small", "medium", "large"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of music")
    parser.add_argument("--peer", action="store_true", help="transformers instead of ours")
    args = parser.parse_args(argv)
    if args.quick:
        args.duration, args.rounds = 0.5, 1

    began = time.perf_counter()
    if args.peer:
        runs = {"transformers": peer(args.size, args.dtype, args.duration)}
        ours = None
    else:
        ours = model(args.size, args.dtype, args.quick)
        jax.block_until_ready(jax.tree.leaves(ours.lm))
        runs = {"musicgen_jax": lambda: ours.generate([TEXT], duration=args.duration).audio}
    built = time.perf_counter() - began
    (side,) = runs
    result = measuring.in_turn(runs, args.rounds)
    speeds = measuring.summary(result, args.duration, "seconds of audio", side)
    sounds = []
    if ours:  # the first time compiles the programs of streaming
        sounds = [round(first_sound(ours, args.duration), 3) for _ in range(args.rounds + 1)]
        warm = float(np.median(sounds[1:]))
        print(f"first sound after {warm:.2f} s warm, {sounds[0]:.2f} s the first time")
    peak = measuring.peak_memory()
    print(f"peak memory {peak / 1e9:.2f} GB; building the random model took {built:.1f} s")
    return measuring.record(
        "end_to_end",
        args,
        size=args.size,
        dtype=args.dtype,
        duration=args.duration,
        **speeds,
        first_sound_seconds=sounds,
        peak_bytes=peak,
        sides=result,
    )


if __name__ == "__main__":
    main()
