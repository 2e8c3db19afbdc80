"""Embeddings of audio by a codec's encoder: its output before the quantizer."""

import jax
import numpy as np

from musicgen_jax import audio
from musicgen_jax.codec import Codec
from musicgen_jax.metrics.resample import in_16_bits
from musicgen_jax.metrics.weights import weights_digest
from musicgen_jax.nn.encodec import Encodec

_LONGEST = 180  # seconds; fadtk cuts longer clips too


class CodecEmbedding:
    """`encodec-emb` as fadtk defines it, with the encoder of any EnCodec.

    Args:
      codec: the codec.
    """

    name = "encodec-emb"

    def __init__(self, codec: Codec):
        self.codec = codec

    @property
    def weights(self) -> str:
        """A digest of the encoder's weights."""
        return weights_digest(self.codec.encodec.encoder)

    @property
    def definition(self) -> str:
        """How a clip becomes rows, in words."""
        config = self.codec.config
        return (
            f"encoder of {self.codec.name or 'a codec'} before the quantizer, "
            f"{config.frame_rate:g} rows a second of {config.dimension} numbers; clips resampled "
            f"by torchaudio's Kaiser filter to {config.sample_rate} Hz with {config.channels} "
            f"channel(s) in 16 bits, cut after {_LONGEST} s, their level unchanged"
        )

    def embed(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Rows of one clip.

        Args:
          wav: float [C, W].
          sample_rate: in Hz.

        Returns:
          float32 [rows, D], a row for each frame of the codec. A codec that works in segments
          takes them one after the other, without overlap and without its normalisation.
        """
        config = self.codec.config
        wav = audio.convert_channels(wav, config.channels)
        wav = in_16_bits(wav, sample_rate, config.sample_rate).astype(np.float32)
        wav = wav[:, : _LONGEST * config.sample_rate]
        length = config.segment_length or wav.shape[1]
        return np.concatenate(
            [
                np.asarray(_latents(self.codec.encodec, wav[None, :, start : start + length])[0])
                for start in range(0, wav.shape[1], length)
            ]
        )


@jax.jit
def _latents(encodec: Encodec, wav: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("float32"):
        return encodec.encoder.in_tiles(wav.swapaxes(1, 2))
