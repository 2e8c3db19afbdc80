"""EnCodec: waveform <-> codes."""

from musicgen_jax.nn.encodec.model import Encodec

__all__ = ["Encodec"]
