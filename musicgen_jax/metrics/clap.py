"""LAION-CLAP: music and texts as unit vectors in one space, to judge how well a clip fits a text.

audiocraft measures with `music_audioset_epoch_15_esc_90.14.pt`. Scores of different files are not
comparable: they differ by more than a factor of two on the same clips.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import ClapConfig
from musicgen_jax.errors import UserError
from musicgen_jax.metrics import protocols
from musicgen_jax.metrics.clap_audio import log_mel, pieces
from musicgen_jax.metrics.clap_htsat import Htsat
from musicgen_jax.metrics.clap_roberta import Roberta
from musicgen_jax.metrics.clap_tokenizer import LENGTH, ClapTokenizer
from musicgen_jax.metrics.weights import load_network, place_of, weights_digest
from musicgen_jax.nn.linear import Linear
from musicgen_jax.storage import checkpoint

SOURCE = "music_audioset_epoch_15_esc_90.14.pt of lukewys/laion_clap on the Hugging Face Hub"
# fadtk's names, by the file that fadtk uses; the Hub has a conversion of each.
_NAMES = {
    "music_audioset_epoch_15_esc_90.14.pt": "clap-laion-music",
    "laion/larger_clap_music": "clap-laion-music",
    "630k-audioset-best.pt": "clap-laion-audio",
    "laion/clap-htsat-unfused": "clap-laion-audio",
}
_PIECES, _TEXTS = 5, 8  # at once: one compiled program serves clips and lists of all lengths


class Projection(nnx.Module):
    """Two linear layers with a ReLU, from a tower to the common space.

    Args:
      in_features: I.
      dim: of the space.
      param_dtype: of the stored matrices.
      rngs: stream `params` is used.
    """

    def __init__(self, in_features: int, dim: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        types: Any = {"use_bias": True, "param_dtype": param_dtype, "rngs": rngs}
        self.linear1, self.linear2 = Linear(in_features, dim, **types), Linear(dim, dim, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, I]` to unit vectors `[B, dim]`."""
        x = self.linear2(jax.nn.relu(self.linear1(x)))
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class ClapNetwork(nnx.Module):
    """Both towers with their projections.

    Args:
      config: sizes.
      param_dtype: of the stored matrices.
      rngs: stream `params` is used.
    """

    def __init__(self, config: ClapConfig, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        types: Any = {"param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.audio = Htsat(config.audio, **types)
        self.text = Roberta(config.text, **types)
        self.audio_projection = Projection(config.audio.widths[-1], config.dim, **types)
        self.text_projection = Projection(config.text.dim, config.dim, **types)

    def embed_audio(self, spectrum: jax.Array) -> jax.Array:
        """Spectra [B, 1001, 64] in dB to unit vectors [B, dim]."""
        return self.audio_projection(self.audio(spectrum))

    def embed_text(self, ids: jax.Array) -> jax.Array:
        """Token ids, int32 [B, L], to unit vectors [B, dim]."""
        return self.text_projection(self.text(ids))


class Clap:
    """CLAP with weights, under one protocol.

    Args:
      network: the network.
      protocol: the name of one, see `protocols`.
      name: for the report; picks the entry of fadtk's statistics.
      tokenizer: for texts, or the folder of its files, which are read on first use.
    """

    def __init__(
        self,
        network: ClapNetwork,
        protocol: str = "audiocraft",
        name: str = "clap",
        tokenizer: ClapTokenizer | Path | None = None,
    ):
        self.network, self.rule, self.name = network, protocols.find(protocol).clap, name
        self._tokenizer, self._weights = tokenizer, ""

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike | None = None, protocol: str = "audiocraft"
    ) -> "Clap":
        """Loads converted weights.

        Args:
          folder: that `musicgen-jax convert` made; default: `clap` in `hub.models_home()`.
          protocol: the name of one, see `protocols`.

        Raises:
          UserError: there are no such weights; the message says how to make them.
        """
        network = load_network("clap", ClapNetwork, folder, SOURCE)
        place = place_of("clap", folder)
        source = str(checkpoint.load_info(place).source.get("name", ""))
        return cls(network, protocol, _NAMES.get(source, f"clap of {source}"), place)

    @property
    def weights(self) -> str:
        """A digest of the weights."""
        if not self._weights:
            self._weights = weights_digest(self.network)
        return self._weights

    @property
    def definition(self) -> str:
        """How a clip becomes rows, in words."""
        return (
            f"unit vectors of LAION-CLAP; clips {self.rule.words}; texts cut after {LENGTH} tokens"
        )

    def embed(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Unit vectors of one clip.

        Args:
          wav: float [C, W].
          sample_rate: in Hz.

        Returns:
          float32 [rows, 512]: one for each second under "fadtk", otherwise a single row.

        Raises:
          UserError: the clip is empty or not finite.
        """
        rows, batch = [], []
        for piece in pieces(wav, sample_rate, self.rule):
            batch.append(log_mel(piece))
            if len(batch) == _PIECES:
                rows.append(self._embed_spectra(batch))
                batch = []
        if batch:
            rows.append(self._embed_spectra(batch))
        return np.concatenate([np.asarray(row) for row in rows])

    def _embed_spectra(self, spectra: list[np.ndarray]) -> jax.Array:
        count = len(spectra)
        if count > 1:  # a single piece has a program of its own
            spectra = spectra + [np.zeros_like(spectra[0])] * (_PIECES - count)
        return _embed_audio(self.network, np.stack(spectra))[:count]

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of texts, of which CLAP reads the first 77 tokens.

        Args:
          texts: any number of strings, also none; an empty one has a vector as well.

        Returns:
          float32 [texts, 512].

        Raises:
          UserError: `texts` is not a list of strings, or the folder of the weights has no
            tokenizer.
        """
        ids = self.tokenizer(texts)
        rows = [np.zeros((0, self.network.config.dim), np.float32)]
        for start in range(0, len(ids), _TEXTS):
            batch = ids[start : start + _TEXTS]
            missing = ((0, _TEXTS - len(batch)), (0, 0))
            found = _embed_text(self.network, np.pad(batch, missing, mode="edge"))
            rows.append(np.asarray(found)[: len(batch)])
        return np.concatenate(rows)

    def cut(self, texts: Sequence[str]) -> int:
        """The number of texts with more than 77 tokens, so that their ends do not count."""
        return sum(length > LENGTH for length in self.tokenizer.lengths(texts))

    @property
    def tokenizer(self) -> ClapTokenizer:
        """The tokenizer.

        Raises:
          UserError: there is none, or it is of another model.
        """
        if self._tokenizer is None:
            raise UserError("this CLAP has no tokenizer: use Clap.from_pretrained")
        if isinstance(self._tokenizer, Path):
            self._tokenizer = ClapTokenizer.from_folder(self._tokenizer)
        size, wanted = self._tokenizer.vocab_size, self.network.config.text.vocab_size
        if size > wanted:
            raise UserError(
                f"the tokenizer has {size} pieces, but the weights of CLAP know {wanted}: it "
                f"belongs to another model"
            )
        return self._tokenizer


@jax.jit
def _embed_audio(network: ClapNetwork, spectra: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("float32"):
        return network.embed_audio(spectra)


@jax.jit
def _embed_text(network: ClapNetwork, ids: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("float32"):
        return network.embed_text(ids)
