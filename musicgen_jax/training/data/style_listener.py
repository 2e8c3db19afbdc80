"""Encodes the style of whole clips: one excerpt every second."""

from pathlib import Path

import jax
import numpy as np

from musicgen_jax.audio import convert_audio
from musicgen_jax.conditioning.style import excerpt_samples, mert_features
from musicgen_jax.errors import UserError
from musicgen_jax.nn.style_conditioner import StyleConditioner
from musicgen_jax.storage import checkpoint, loading
from musicgen_jax.training.data.style_grid import StyleGrid

_STRIDE = 1.0  # seconds
_AT_ONCE = 8  # excerpts per batch


class StyleListener:
    """Encodes the style of excerpts of a clip with a model's MERT and style conditioner.

    Each excerpt is encoded alone, as in generation. All codebooks are stored; training draws the
    number of codebooks that an example uses.

    Args:
      folder: of the style model.
      excerpt_length: in seconds, rounded to code frames.

    Attributes:
      grid: layout of the excerpts.
      settings: the settings that define the styles, plain JSON types.
      line: a line for the log that describes the styles.

    Raises:
      UserError: the excerpt is too short or too long, or its codes do not fit in 16 bits.
    """

    def __init__(self, folder: Path, excerpt_length: float):
        config = checkpoint.load_config(folder)
        style, mert, hop = config.lm.style, config.mert, config.encodec.hop_length
        assert style is not None
        assert mert is not None
        length = max(1, round(excerpt_samples(excerpt_length, config) / hop))
        self._samples, self._hop, self._rate = length * hop, hop, config.sample_rate
        features = mert.num_frames(self._samples * mert.sample_rate // self._rate)
        if not features or style.bins > 1 << 16:
            raise UserError(
                f"excerpts of {excerpt_length:g} s cannot be stored next to codes: they have no "
                f"token "
                f"of style, or codes beyond {1 << 16}"
            )
        self._mert = loading.load_mert(folder, mert)
        self._conditioner = loading.load_style_conditioner(folder, config.lm)
        self.grid = StyleGrid(
            length=length,
            stride=max(1, round(_STRIDE * config.frame_rate)),
            books=style.n_q,
            bins=style.bins,
            tokens=-(-features // style.ds_factor),
            conditioner=self._conditioner.rvq.fingerprint,
        )
        self.settings = self.grid.to_settings()
        self.line = f"styles: of excerpts of {length / config.frame_rate:g} s, one every second"

    def __call__(self, audio: np.ndarray, frames: int) -> np.ndarray:
        """The codes of all excerpts, uint16 [N, K, P]; N is 0 if the clip is too short.

        Args:
          audio: float32 [C, W] at the model's rate.
          frames: length of the music in code frames; the last frame may extend past the audio.
        """
        mono = convert_audio(audio, self._rate, self._rate, 1)[0]
        mono = np.pad(mono, (0, max(0, frames * self._hop - len(mono))))
        heard = self.grid.inside(0, frames)
        apart = self.grid.stride * self._hop
        excerpts = [mono[i * apart :][: self._samples] for i in range(heard.stop)]
        codes = [np.zeros((0, self.grid.books, self.grid.tokens), np.uint16)]
        for first in range(0, len(excerpts), _AT_ONCE):
            batch = excerpts[first : first + _AT_ONCE]
            filled = np.stack(batch + batch[:1] * (_AT_ONCE - len(batch)))  # compiles once
            features = mert_features(self._mert, filled, sample_rate=self._rate)
            found = _codes(self._conditioner, features)
            codes.append(np.asarray(found, np.uint16)[: len(batch)])
        return np.concatenate(codes)


@jax.jit
def _codes(conditioner: StyleConditioner, features: jax.Array) -> jax.Array:
    return conditioner.encode(features, conditioner.config.n_q)
