"""Seconds that EnCodec takes to encode and to decode, ours against transformers, in one run.

Question: how much faster than real time does the 32 kHz codec run on this machine, for short and
long clips? Both sides have random weights, and run one mono clip in float32.

    python benchmarks/codec.py --seconds 2 10 30 --rounds 5
    python benchmarks/codec.py --seconds 10 --parts      # ours alone, by part

`--parts` times the convolutions and the LSTM separately. For comparison it also measures a product
of two square matrices, which shows the peak arithmetic of this machine, and the memory bandwidth.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measuring
import numpy as np
from flax import nnx

from musicgen_jax.config import OFFICIAL_MODELS, EncodecConfig
from musicgen_jax.nn.encodec import Encodec


def codec_config(quick: bool = False) -> EncodecConfig:
    """The config of MusicGen's codec, or with `quick` of a narrow one."""
    config = OFFICIAL_MODELS["facebook/musicgen-small"].encodec
    return dataclasses.replace(config, n_filters=4, dimension=16, bins=64) if quick else config


def peer_config(config: EncodecConfig) -> Any:
    """The same codec as transformers describes it."""
    import transformers

    return transformers.EncodecConfig(
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


def peer(config: EncodecConfig) -> Any:
    """The same codec in transformers, with random weights."""
    import transformers

    return transformers.EncodecModel(peer_config(config)).eval()


def sides(
    config: EncodecConfig, seconds: float, device: str = "cpu", encodec: Encodec | None = None
) -> dict[str, dict[str, Callable]]:
    """The runs of both sides, {"encode" | "decode": {side: run}}.

    Args:
      config: of both codecs.
      seconds: length of the audio.
      device: of torch.
      encodec: our codec. Default: one with random weights.
    """
    import torch

    frames = max(int(seconds * config.sample_rate / config.hop_length), 1)
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 1, frames * config.hop_length))
    wav = wav.astype(np.float32)
    codes = np.random.default_rng(1).integers(0, config.bins, (1, config.n_q, frames))

    encodec = encodec or Encodec(config, rngs=nnx.Rngs(0))
    encode = jax.jit(lambda model, x: model.encode(x))
    decode = jax.jit(lambda model, c: model.decode(c))

    theirs = peer(config).to(device)
    torch_wav = torch.from_numpy(wav).to(device)
    torch_codes = torch.from_numpy(codes)[None].to(device)

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    def peer_encode():
        with torch.no_grad():
            theirs.encode(torch_wav)
        wait()

    def peer_decode():
        with torch.no_grad():
            theirs.decode(torch_codes, [None])
        wait()

    x, c = jnp.asarray(wav), jnp.asarray(codes, jnp.int32)
    return {
        "encode": {"musicgen_jax": lambda: encode(encodec, x), "transformers": peer_encode},
        "decode": {"musicgen_jax": lambda: decode(encodec, c), "transformers": peer_decode},
    }


def parts(config: EncodecConfig, seconds: float) -> dict[str, float]:
    """Seconds of the convolutions and of the LSTM, and their rates.

    XLA counts the arithmetic of the convolutions. The LSTM reads both recurrent weights at every
    frame, one after the other, so that each stays in the last-level cache while it is needed.
    """
    frames = int(seconds * config.sample_rate / config.hop_length)
    plain = dataclasses.replace(config, lstm=0)
    codes = jnp.zeros((1, config.n_q, frames), jnp.int32)
    wav = jnp.zeros((1, config.channels, frames * config.hop_length))
    figures = {}
    for task, x in (("encode", wav), ("decode", codes)):
        best = {}
        for name, each in (("all", config), ("convolutions", plain)):
            model = Encodec(each, rngs=nnx.Rngs(0))
            run = jax.jit(getattr(Encodec, task))
            compiled = run.lower(model, x).compile()
            call = partial(compiled, model, x)
            call()
            best[name] = min(measuring.measure(call)[0] for _ in range(5))
        # Counted without tiles: XLA counts only one turn of a loop over tiles.
        part = model.encoder if task == "encode" else model.decoder
        at = (1, wav.shape[2], wav.shape[1]) if task == "encode" else (1, frames, config.dimension)
        whole = jax.jit(lambda part, x: part(x)).lower(part, jnp.zeros(at))
        flops = whole.cost_analysis()["flops"]
        lstm = max(best["all"] - best["convolutions"], 1e-9)  # in tiny shapes it is lost in noise
        weights = config.lstm * 4 * (config.n_filters * 2 ** len(config.ratios)) ** 2 * 4
        figures |= {
            f"{task}_convolutions_seconds": best["convolutions"],
            f"{task}_convolutions_gflops": flops / best["convolutions"] / 1e9,
            f"{task}_lstm_seconds": lstm,
            f"{task}_lstm_gbytes": frames * weights / lstm / 1e9,
        }
    square = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a)
    product(square)
    once = min(measuring.measure(lambda: product(square))[0] for _ in range(5))
    figures["square_product_gflops"] = 2 * 2048**3 / once / 1e9
    figures["bandwidth_gbytes"] = measuring.bandwidth() / 1e9
    return {name: round(value, 3) for name, value in figures.items()}


def main(argv: list[str] | None = None) -> list[dict]:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 10.0, 30.0])
    parser.add_argument("--parts", action="store_true", help="ours alone, taken apart")
    args = parser.parse_args(argv)
    if args.quick:
        args.seconds, args.rounds = [0.1], 1
    config, lines = codec_config(args.quick), []
    for seconds in args.seconds:
        if args.parts:
            figures = parts(config, seconds)
            print("\n".join(f"{name}: {value:g}" for name, value in figures.items()))
            lines.append(measuring.record("codec_parts", args, audio_seconds=seconds, **figures))
            continue
        for task, runs in sides(config, seconds).items():
            print(f"--- {task}, {seconds:g} s of audio")
            result = measuring.in_turn(runs, args.rounds)
            # Seconds of audio per second: times real time.
            speeds = measuring.summary(result, seconds, "seconds of audio", "musicgen_jax")
            lines.append(
                measuring.record(
                    "codec", args, task=task, audio_seconds=seconds, **speeds, sides=result
                )
            )
    return lines


if __name__ == "__main__":
    main()
