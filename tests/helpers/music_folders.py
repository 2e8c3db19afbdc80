"""Folders of audio files and shards of codes."""

import json
from pathlib import Path

import numpy as np
import soundfile

from musicgen_jax.training.data.metadata import MusicInfo
from musicgen_jax.training.data.prompts import PromptConfig
from musicgen_jax.training.data.shard_writer import ShardWriter
from musicgen_jax.training.data.shards import CodeClip, CodeShards
from musicgen_jax.training.data.sources import Skipped

CODES = {
    "sample_rate": 100,
    "hop_length": 4,
    "audio_channels": 1,
    "codebooks": 2,
    "card": 1000,
    "codec": "counting",
    "fingerprint": "f",
    "format": "musicgen-jax code shards",
    "version": 1,
}
TAIL = 3
DESCRIPTION_ALONE = PromptConfig(0.0, 0.0, 0.0, 0.0)


def tone(seconds: float, rate: int = 4000, seed: int = 0, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.3 * rng.standard_normal((round(seconds * rate), channels))).clip(-1, 1)


def make_folder(folder: Path, durations, rate: int = 4000) -> Path:
    folder.mkdir(parents=True)
    for i, seconds in enumerate(durations):
        soundfile.write(folder / f"{i}.wav", tone(seconds, rate, i), rate)
        text = json.dumps({"description": f"piece {i}", "genre": "Rock"})
        (folder / f"{i}.json").write_text(text)
    return folder


def make_shards(folder: Path, lengths=(5, 40, 12), per_shard: int = 50) -> CodeShards:
    """Clips whose codes count: 100 i, 100 i + 1 ...; behind them 900 three times, then 901."""
    writer = ShardWriter(folder, CODES, per_shard, lambda line: None)
    for i, frames in enumerate(lengths):
        row = np.r_[100 * i + np.arange(frames), [900] * TAIL]
        info = MusicInfo(description=f"piece {i}")
        clip = CodeClip(f"{i}.wav", 0, frames, frames + TAIL, None, (1, 2), info)
        writer.add(clip, np.stack([row, row + 1]))
    writer.finish([901, 902], Skipped())
    return CodeShards.open(folder, prompt_config=DESCRIPTION_ALONE)
