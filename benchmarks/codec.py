"""Seconds that EnCodec takes to encode and to decode, ours against transformers, in one run.

Question: how much faster than real time does the 32 kHz codec run on this machine, for short and
long clips? Random weights, one mono clip, float32 on both sides.

    python benchmarks/codec.py --seconds 2 10 30 --rounds 5
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measuring
import numpy as np
from flax import nnx

from musicgen_jax.config import OFFICIAL_MODELS, EncodecConfig
from musicgen_jax.encodec import Encodec


def codec_config(quick: bool = False) -> EncodecConfig:
    """Of MusicGen's codec; with `quick` a narrow one."""
    config = OFFICIAL_MODELS["facebook/musicgen-small"].encodec
    return dataclasses.replace(config, n_filters=4, dimension=16, bins=64) if quick else config


def sides(config: EncodecConfig, seconds: float) -> dict[str, dict[str, Callable]]:
    """{"encode" | "decode": {side: run}}."""
    import torch
    import transformers

    frames = max(int(seconds * config.sample_rate / config.hop_length), 1)
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 1, frames * config.hop_length))
    wav = wav.astype(np.float32)
    codes = np.random.default_rng(1).integers(0, config.bins, (1, config.n_q, frames))

    encodec = Encodec(config, rngs=nnx.Rngs(0))
    encode = jax.jit(lambda model, x: model.encode(x))
    decode = jax.jit(lambda model, c: model.decode(c))

    torch_config = transformers.EncodecConfig(
        target_bandwidths=[config.n_q * np.log2(config.bins) * config.frame_rate / 1000],
        sampling_rate=config.sample_rate,
        audio_channels=config.channels,
        num_filters=config.n_filters,
        num_residual_layers=config.n_residual_layers,
        upsampling_ratios=list(config.ratios),
        hidden_size=config.dimension,
        codebook_size=config.bins,
        codebook_dim=config.dimension,
        num_lstm_layers=config.lstm,
        use_causal_conv=config.causal,
        use_conv_shortcut=config.conv_shortcut,
        normalize=False,
    )
    peer = transformers.EncodecModel(torch_config).eval()
    torch_wav, torch_codes = torch.from_numpy(wav), torch.from_numpy(codes)[None]

    def peer_encode():
        with torch.no_grad():
            peer.encode(torch_wav)

    def peer_decode():
        with torch.no_grad():
            peer.decode(torch_codes, [None])

    x, c = jnp.asarray(wav), jnp.asarray(codes, jnp.int32)
    return {
        "encode": {"musicgen_jax": lambda: encode(encodec, x), "transformers": peer_encode},
        "decode": {"musicgen_jax": lambda: decode(encodec, c), "transformers": peer_decode},
    }


def main(argv: list[str] | None = None) -> list[dict]:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 10.0, 30.0])
    args = parser.parse_args(argv)
    if args.quick:
        args.seconds, args.rounds = [0.1], 1
    config, lines = codec_config(args.quick), []
    for seconds in args.seconds:
        for task, runs in sides(config, seconds).items():
            print(f"--- {task}, {seconds:g} s of audio")
            result = measuring.in_turn(runs, args.rounds)
            # In seconds of audio per second: times real time.
            speeds = measuring.summary(result, seconds, "seconds of audio", "musicgen_jax")
            lines.append(
                measuring.record(
                    "codec", args, task=task, audio_seconds=seconds, **speeds, sides=result
                )
            )
    return lines


if __name__ == "__main__":
    main()
