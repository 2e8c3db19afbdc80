"""Separator: from a song to its stems, at any length."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax import audio as audio_lib
from musicgen_jax.conditioning.segments import in_segments
from musicgen_jax.config import HTDemucsConfig
from musicgen_jax.errors import UserError
from musicgen_jax.nn.htdemucs.model import HTDemucs
from musicgen_jax.nn.shapes import filled, module_shapes
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.hub import models_home

COMPONENT = "separator"
MELODY = ("vocals", "other")  # the stems that audiocraft uses as the melody
MAX_SHIFT = 0.5  # seconds


class Separator:
    """Splits music into stems with HTDemucs. Computes in float32.

    Args:
      model: the network, with its weights.
    """

    def __init__(self, model: HTDemucs):
        self.config: HTDemucsConfig = model.config
        self.model = model

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str] = "htdemucs") -> "Separator":
        """Loads a converted separator.

        Args:
          name_or_path: a folder that `musicgen-jax convert` made, or the name of one in
            `hub.models_home()`.

        Raises:
          UserError: there is no such folder, or it holds no separator; the message says how to
            make one.
        """
        folder = _find(name_or_path)
        info = checkpoint.load_info(folder)
        config = info.parts.get(COMPONENT)
        if not isinstance(config, HTDemucsConfig):
            raise UserError(f"{folder} holds no separator, only {', '.join(info.parts)}")
        return cls.build(config, partial(checkpoint.load_params, folder, COMPONENT))

    @classmethod
    def build(cls, config: HTDemucsConfig, weights: Callable[[dict], dict]) -> "Separator":
        """Makes a separator of weights from anywhere.

        Args:
          config: the architecture.
          weights: called with the parameter tree as nested dicts of `jax.ShapeDtypeStruct`;
            returns the same nested dicts of arrays.
        """
        return cls(filled(module_shapes(HTDemucs, config), weights))

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the stems."""
        return self.config.sources

    @property
    def sample_rate(self) -> int:
        """Sample rate of the stems, in Hz."""
        return self.config.sample_rate

    def __call__(
        self, audio: np.ndarray, sample_rate: int, *, seed: int | None = None
    ) -> dict[str, np.ndarray]:
        """Separates audio.

        The level is normalised first and restored afterwards, as demucs' own tools do; silence
        gives silence. The result is stereo: mono is doubled, and more channels are cut to the first
        two.

        Args:
          audio: float32 [C, W].
          sample_rate: of `audio`, in Hz.
          seed: shifts the seams between segments by up to half a second, as demucs does at random;
            None for no shift.

        Returns:
          {stem: float32 [2, W']} at `self.sample_rate`, W' = floor(W * rate ratio), at least 1.

        Raises:
          UserError: `audio` is empty, not [C, W], or holds NaN or infinite values.
        """
        mix = self._prepare(audio, sample_rate)
        reference = mix.mean(axis=0)
        mean = reference.mean()
        # One sample has no standard deviation: demucs would return NaN.
        std = (reference.std(ddof=1) if reference.size > 1 else np.float32(0)) + np.float32(1e-8)
        stems = self._separate((mix - mean) / std, tuple(range(len(self.sources))), seed)
        stems *= std
        stems += mean
        return dict(zip(self.sources, stems, strict=True))

    def melody(
        self, audio: np.ndarray, sample_rate: int, *, seed: int | None = None
    ) -> tuple[np.ndarray, int]:
        """The stems that carry the melody: vocals and other, without drums and bass.

        As in audiocraft's conditioner, the level is not normalised first.

        Args:
          audio: float32 [C, W].
          sample_rate: of `audio`, in Hz.
          seed: see `__call__`.

        Returns:
          float32 [2, W'] and `self.sample_rate`.

        Raises:
          UserError: as `__call__`, or the model does not have these stems.
        """
        if missing := [name for name in MELODY if name not in self.sources]:
            raise UserError(f"this separator has no stem {missing[0]!r}, only {self.sources}")
        stems = tuple(self.sources.index(name) for name in MELODY)
        mix = self._prepare(audio, sample_rate)
        return self._separate(mix, stems, seed, add=True)[0], self.sample_rate

    def _prepare(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """The audio at the model's rate and number of channels."""
        audio = audio_lib.convert_channels(audio, self.config.audio_channels)
        if not np.isfinite(audio).all():
            raise UserError("cannot separate audio that holds NaN or infinite samples")
        return audio_lib.resample(audio, sample_rate, self.sample_rate)

    def _separate(
        self, mix: np.ndarray, stems: tuple[int, ...], seed: int | None, *, add: bool = False
    ) -> np.ndarray:
        """The chosen stems [stems, C, W] of `mix` [C, W], or their sum [1, C, W]."""

        def process(segment: np.ndarray) -> np.ndarray:
            chosen = np.asarray(_forward(self.model, segment[None]))[0, list(stems)]
            return chosen.sum(axis=0, keepdims=True) if add else chosen

        lead = 0
        if seed is not None:
            limit = int(MAX_SHIFT * self.sample_rate)
            lead = int(np.random.default_rng(seed).integers(limit, endpoint=True))
        return in_segments(process, mix, self.config.segment_length, lead)


@jax.jit
def _forward(model: HTDemucs, mix: jax.Array) -> jax.Array:
    # Accelerators would otherwise round products to bfloat16 or TF32. Two branches nearly cancel
    # here, and the rounding would show.
    with jax.default_matmul_precision("float32"):
        return model(jnp.asarray(mix))


def _find(name_or_path: str | os.PathLike[str]) -> Path:
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"{path} is a file: first run `musicgen-jax convert {path} OUT`")
    name = str(name_or_path)
    folder = models_home() / name
    if name != Path(name).name or not folder.is_dir():
        raise UserError(
            f"no separator {name!r} here or in {models_home()}: run `musicgen-jax convert "
            f"adefossez/HTDemucs {models_home() / 'htdemucs'}`, or the same with a downloaded "
            f"955717e8-8726e21a.th instead of the repository"
        )
    return folder
