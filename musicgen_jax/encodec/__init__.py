"""EnCodec: waveform <-> codes."""

from musicgen_jax.encodec.model import Encodec

__all__ = ["Encodec"]
