"""Embeddings of audio by MERT, `MERT-v1-95M` of fadtk: the last hidden states."""

import os

import numpy as np

from musicgen_jax import audio
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.resample import in_16_bits
from musicgen_jax.metrics.weights import load_network, run, weights_digest
from musicgen_jax.nn.mert import Mert

SOURCE = "m-a-p/MERT-v1-95M instead of FILE, or a folder with its files"


class MertEmbedding:
    """MERT with weights.

    Args:
      network: the network.
    """

    name = "MERT-v1-95M"

    def __init__(self, network: Mert):
        self.network = network

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike | None = None) -> "MertEmbedding":
        """Loads converted weights.

        Args:
          folder: that `musicgen-jax convert` made of MERT alone, or a style model's; default:
            `mert` in `hub.models_home()`.

        Raises:
          UserError: there are no such weights; the message says how to make them.
        """
        return cls(load_network("mert", Mert, folder, SOURCE))

    @property
    def weights(self) -> str:
        """A digest of the weights."""
        return weights_digest(self.network)

    @property
    def definition(self) -> str:
        """How a clip becomes rows, in words."""
        return (
            "last hidden states of MERT, about 75 rows a second; clips mono, resampled by "
            f"torchaudio's Kaiser filter to {self.network.config.sample_rate} Hz in 16 bits, each "
            "brought to zero mean and unit variance"
        )

    def embed(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Rows of one clip.

        Args:
          wav: float [C, W].
          sample_rate: in Hz.

        Returns:
          float32 [rows, D].

        Raises:
          UserError: the clip is too short for a row.
        """
        config = self.network.config
        mono = audio.convert_channels(wav, 1)
        mono = in_16_bits(mono, sample_rate, config.sample_rate)
        if not config.num_frames(mono.shape[1]):
            raise UserError(f"{mono.shape[1] / config.sample_rate:.3f} s are too short for MERT")
        mono = (mono - mono.mean()) / np.sqrt(mono.var() + 1e-7)  # as transformers' processor
        return np.asarray(run(self.network, mono.astype(np.float32))[0])
