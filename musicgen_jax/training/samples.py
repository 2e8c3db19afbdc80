"""Sample clips of a model during training, with spectrograms."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from musicgen_jax import audio
from musicgen_jax.audio import plot
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError
from musicgen_jax.model import MusicGen
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.tokenizer import Tokenizer


class Samples:
    """Makes sample clips with the current parameters.

    Args:
      folder: output folder of the clips.
      config: of the trained model.
      base: folder of the model that provides the codec.
      prompts: one per clip.
      seconds: length of a clip.
      say: receives a line if the clips come without pictures.
    """

    def __init__(
        self,
        folder: Path,
        config: MusicGenConfig,
        base: Path,
        prompts: Sequence[str],
        seconds: float,
        say: Callable[[str], object],
    ):
        self._folder, self._config, self._base = folder, config, base
        self._prompts, self._seconds = list(prompts), min(seconds, config.max_duration)
        self._tokenizer = Tokenizer(base / checkpoint.TOKENIZER)
        try:
            plot.require_matplotlib()
            self._pictures = True
        except UserError as error:
            self._pictures = False
            say(f"samples come without pictures: {error}")

    def make(self, step: int, params: Any) -> None:
        """Writes one file per prompt, with the same seed at every step. All processes call it.

        Only the first process generates, on one device. But all processes build the model, because
        they wait for each other while Orbax reads. So the model must fit on one device.

        Args:
          step: number of steps done.
          params: of the model.
        """
        whole = _gathered(params)

        def weights(name: str, abstract: dict) -> Any:
            if name in whole:
                return jax.device_put(whole[name])
            return checkpoint.load_params(self._base, name, abstract)

        model = MusicGen.build(self._config, weights, self._tokenizer, dtype=None)
        if jax.process_index():
            return
        out = model.generate(self._prompts, duration=self._seconds)
        self._folder.mkdir(parents=True, exist_ok=True)
        for i, wav in enumerate(out.audio):
            file = self._folder / f"step-{step:08}-{i}.wav"
            audio.write(file, wav, out.sample_rate, "loudness", loudness_compressor=True)
            if self._pictures:
                title = f"step {step}: {self._prompts[i]}"
                plot.draw_spectrogram(file.with_suffix(".png"), wav[0], out.sample_rate, title)


def _gathered(params: Any) -> Any:
    """The parameters as NumPy arrays, gathered from all devices."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(params, tiled=True)
    return jax.tree.map(np.asarray, params)
