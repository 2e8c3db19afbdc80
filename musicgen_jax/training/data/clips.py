"""Draws segments of audio files for codec training."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np

from musicgen_jax.errors import UserError
from musicgen_jax.training.data import sampling, sources
from musicgen_jax.training.data.sources import AudioMeta, Skipped, read_audio

_MAX_DRAWS = 100  # with half of the files broken, ten failures in a row happen every day


@dataclasses.dataclass(frozen=True)
class AudioSegment:
    """A segment of a file.

    Attributes:
      audio: float32 [C, W], with zeros after the end of the file.
      n_frames: number of samples of W that are not padding.
      seek_time: start of the segment in the file, in seconds.
      path: name of the file in its folder or manifest.
    """

    audio: np.ndarray
    n_frames: int
    seek_time: float
    path: str

    @property
    def mask(self) -> np.ndarray:
        """Bool [W], False where the audio is padding."""
        return np.arange(self.audio.shape[1]) < self.n_frames


class AudioClips:
    """Audio files to draw segments from.

    Args:
      metas: the files.
      sample_rate: of the segments, in Hz.
      channels: C of the segments.
      config: how to draw segments.
      skipped: collects broken files.

    Raises:
      UserError: every file has weight 0.
    """

    def __init__(
        self,
        metas: Sequence[AudioMeta],
        sample_rate: int,
        channels: int,
        config: sampling.SamplingConfig,
        skipped: Skipped,
    ):
        self.metas = list(metas)
        self.sample_rate, self.channels, self.config = sample_rate, channels, config
        self.skipped = skipped
        self._durations = np.array([meta.duration for meta in metas])
        weights = [meta.weight for meta in metas]
        self._probabilities = sampling.cumulative(self._durations.tolist(), weights, config)

    @classmethod
    def open(
        cls,
        source: str | os.PathLike,
        sample_rate: int,
        channels: int,
        config: sampling.SamplingConfig | None = None,
    ) -> "AudioClips":
        """Opens the audio of a folder or a manifest; see `sources.find`.

        Args:
          source: the folder or manifest.
          sample_rate: of the segments, in Hz.
          channels: C of the segments.
          config: how to draw segments (default: `SamplingConfig()`).

        Raises:
          UserError: there is no audio, or the manifest is broken.
        """
        skipped = Skipped()
        metas = sources.find(source, skipped)
        return cls(metas, sample_rate, channels, config or sampling.SamplingConfig(), skipped)

    @property
    def fingerprint(self) -> str:
        """Identifies the clips by their names, durations, sample rates and weights."""
        rows = [(m.path, m.duration, m.sample_rate, m.weight) for m in self.metas]
        text = json.dumps([rows, self.sample_rate, self.channels])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def segment(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        """Draws a random segment, float32 [C, samples], with zeros after the end of a file."""
        return self.sample(rng, samples).audio

    def sample(self, rng: np.random.Generator, samples: int) -> AudioSegment:
        """Draws a random segment, with its position and its file.

        If a file is broken, another file is drawn. The result depends only on `rng`, so a broken
        file is reported once but not excluded: other parts of it may be readable.

        Args:
          rng: draws the file and the position.
          samples: W.

        Raises:
          UserError: too many draws in a row hit unreadable files.
        """
        seconds = samples / self.sample_rate
        to = self.sample_rate, self.channels
        for _ in range(_MAX_DRAWS):
            index, seek_time = sampling.draw(
                rng, self._probabilities, self._durations, seconds, self.config
            )
            meta = self.metas[index]
            try:
                audio = read_audio(meta, *to, start=seek_time, seconds=seconds)
            except UserError as error:
                self.skipped.add(meta.path, error)
                continue
            audio = audio[:, :samples]
            n_frames = audio.shape[1]
            audio = np.pad(audio, ((0, 0), (0, samples - n_frames)))
            return AudioSegment(audio, n_frames, seek_time, meta.path)
        raise UserError(
            f"no audio could be read in {_MAX_DRAWS} draws: {len(self.skipped)} of "
            f"{len(self.metas)} files are broken, the first is {next(iter(self.skipped.names))}"
        )
