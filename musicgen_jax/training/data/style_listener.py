"""What a style model hears of whole clips: the codes of excerpts, one every second."""

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
_AT_ONCE = 8  # excerpts


class StyleListener:
    """Hears the style of excerpts of a clip with a model's MERT and style conditioner.

    Each excerpt is heard alone, as in generation. All codebooks are kept; how many of them an
    example uses is drawn in training.

    Args:
      folder: of the style model.
      excerpt_length: seconds, rounded to frames of codes.

    Attributes:
      grid: of the excerpts.
      settings: what the styles mean, plain JSON types.
      line: says what is listened to.

    Raises:
      UserError: the excerpt is too short or too long, or has more codes than can be kept.
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
                f"excerpts of {excerpt_length:g} s cannot be kept beside codes: they have no token "
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
        """The codes of all excerpts, uint16 [N, K, P], N being 0 for a clip that is too short.

        Args:
          audio: float32 [C, W] at the model's rate.
          frames: of codes that the music lasts; the last one may be longer than the audio.
        """
        mono = convert_audio(audio, self._rate, self._rate, 1)[0]
        mono = np.pad(mono, (0, max(0, frames * self._hop - len(mono))))
        heard = self.grid.inside(0, frames)
        apart = self.grid.stride * self._hop
        excerpts = [mono[i * apart :][: self._samples] for i in range(heard.stop)]
        codes = [np.zeros((0, self.grid.books, self.grid.tokens), np.uint16)]
        for first in range(0, len(excerpts), _AT_ONCE):
            batch = excerpts[first : first + _AT_ONCE]
            filled = np.stack(batch + batch[:1] * (_AT_ONCE - len(batch)))  # one compilation
            features = mert_features(self._mert, filled, sample_rate=self._rate)
            found = _codes(self._conditioner, features)
            codes.append(np.asarray(found, np.uint16)[: len(batch)])
        return np.concatenate(codes)


@jax.jit
def _codes(conditioner: StyleConditioner, features: jax.Array) -> jax.Array:
    return conditioner.encode(features, conditioner.config.n_q)
