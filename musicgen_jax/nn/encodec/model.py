"""EnCodec: waveform <-> codes."""

import jax
import jax.numpy as jnp
from flax import nnx

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec.quantizer import ResidualVectorQuantizer
from musicgen_jax.nn.encodec.seanet import Decoder, Encoder


class Encodec(nnx.Module):
    """The neural codec (audiocraft, models/encodec.py), for one segment at one level.

    `segments` handles the levels and overlaps of a codec that works in segments.
    The default `dtype` is float32, because rounding is audible here.
    """

    def __init__(
        self, config: EncodecConfig, *, dtype=jnp.float32, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.encoder = Encoder(config, **kwargs)
        self.decoder = Decoder(config, **kwargs)
        self.quantizer = ResidualVectorQuantizer(
            config.n_q, config.bins, config.dimension, param_dtype=param_dtype, rngs=rngs
        )

    def encode(self, audio: jax.Array, n_q: int | None = None) -> jax.Array:
        """Encodes a waveform to codes.

        Args:
          audio: float [B, C, W] at `config.sample_rate`, C = `config.channels`.
          n_q: K, the number of codebooks to use, from the first one on (default: all).

        Returns:
          int32 [B, K, T] with T = ceil(W / hop_length).

        Raises:
          ValueError: `audio` is not [B, channels, W] with W > 0.
        """
        if audio.ndim != 3 or audio.shape[1] != self.config.channels or not audio.shape[2]:
            raise ValueError(
                f"audio must be [B, {self.config.channels}, W] with W > 0, got {audio.shape}"
            )
        return self.quantizer.encode(self.encoder.in_tiles(audio.swapaxes(1, 2)), n_q)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Decodes codes to a waveform.

        Args:
          codes: int [B, K, T], each in [0, bins), for all codebooks or the first K.

        Returns:
          float32 [B, C, T * hop_length].

        Raises:
          ValueError: `codes` is not [B, K, T] with K from 1 to n_q and T > 0.
        """
        n_q = self.config.n_q
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= n_q or not codes.shape[2]:
            raise ValueError(f"codes must be [B, 1 to {n_q}, T] with T > 0, got {codes.shape}")
        return self.decoder.in_tiles(self.quantizer.decode(codes)).swapaxes(1, 2)
