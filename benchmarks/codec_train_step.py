"""Training steps of the codec per second, ours against transformers, in one run.

Question: how fast are a loss and its gradient through EnCodec's encoder and decoder at the official
shape on this machine? Both sides get the same audio and random weights, and compute the mean
absolute error and the gradients of all parameters. Quantizer, discriminator and optimizer are left
out on both sides.

    python benchmarks/codec_train_step.py --seconds 1 --batch 2 --rounds 5

The unit of work is a second of audio: batch size times length.
"""

from collections.abc import Callable

import codec
import jax
import jax.numpy as jnp
import measuring
import numpy as np
from flax import nnx

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec import Encodec


def ours(config: EncodecConfig, wav: np.ndarray) -> Callable:
    graphdef, params = nnx.split(Encodec(config, rngs=nnx.Rngs(0)), nnx.Param)
    audio = jnp.asarray(wav).swapaxes(1, 2)  # [B, W, C]

    def loss(params):
        model = nnx.merge(graphdef, params)
        return jnp.abs(model.decoder(model.encoder(audio)) - audio).mean()

    step = jax.jit(jax.value_and_grad(loss))
    return lambda: step(params)


def theirs(config: EncodecConfig, wav: np.ndarray) -> Callable:
    import torch

    model, audio = codec.peer(config), torch.from_numpy(wav)

    def run() -> float:
        model.zero_grad()
        loss = (model.decoder(model.encoder(audio)) - audio).abs().mean()
        loss.backward()
        return float(loss.detach())

    return run


def main(argv: list[str] | None = None) -> dict:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=2)
    args = parser.parse_args(argv)
    if args.quick:
        args.seconds, args.rounds = 0.1, 1
    config = codec.codec_config(args.quick)
    frames = max(int(args.seconds * config.sample_rate / config.hop_length), 1)
    shape = args.batch, config.channels, frames * config.hop_length
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)
    runs = {"musicgen_jax": ours(config, wav), "transformers": theirs(config, wav)}
    result = measuring.in_turn(runs, args.rounds)
    length = wav.size / config.sample_rate
    speeds = measuring.summary(result, length, "seconds of audio", "musicgen_jax")
    return measuring.record(
        "codec_train_step",
        args,
        audio_seconds=args.seconds,
        batch=args.batch,
        **speeds,
        runs=result,
    )


if __name__ == "__main__":
    main()
