"""The clips of the report on the bundled model: generated, real, and damaged ones."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import nano_probes
import numpy as np
from nano_probes import PROBE_SEED, Features, features
from nano_requests import Request

from musicgen_jax import MusicGen
from musicgen_jax.audio import convert_audio
from musicgen_jax.nano import composer, synth
from musicgen_jax.nano.composer import PieceSpec
from musicgen_jax.nano.pieces import spec_of
from musicgen_jax.nano.synth import SAMPLE_RATE


def parts(size: int, *sequences) -> Iterator[tuple]:
    """Cuts sequences of equal length into parts of `size` items."""
    for at in range(0, len(sequences[0]), size):
        yield tuple(s[at : at + size] for s in sequences)


def say(text: str) -> None:
    """Prints the progress."""
    print(text, file=sys.stderr, flush=True)


def mono(model: MusicGen, audio: np.ndarray) -> np.ndarray:
    """The model's [B, C, W] as mono audio [B, W] for the judges."""
    to = SAMPLE_RATE, 1
    return np.stack([convert_audio(clip, model.sample_rate, *to)[0] for clip in audio])


def generate(
    model: MusicGen, requests: Sequence[Request], batch: int, seed: int, settings: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Audio [N, W] and codes [N, K, T]; a clip depends only on its request and the seed."""
    audio, codes = [], []
    for (part,) in parts(batch, requests):
        seeds = [(seed * 1_000_003 + request.seed) % 2**32 for request in part]
        output = model.generate([r.prompt for r in part], seed=seeds, **settings)
        audio.append(mono(model, output.audio))
        codes.append(output.codes)
        say(f"generated {sum(map(len, codes))} of {len(requests)} clips")
    return np.concatenate(audio), np.concatenate(codes)


def encoded(model: MusicGen, audio: np.ndarray, batch: int) -> np.ndarray:
    """Codes [N, K, T] of clips [N, W]."""
    rows = [np.asarray(model.encode(p[:, None], SAMPLE_RATE)) for (p,) in parts(batch, audio)]
    return np.concatenate(rows)


def decoded(model: MusicGen, codes: np.ndarray, batch: int) -> np.ndarray:
    """Clips [N, W] of codes [N, K, T]."""
    rows = [mono(model, np.asarray(model.decode(part))) for (part,) in parts(batch, codes)]
    return np.concatenate(rows)


def through_codec(model: MusicGen, audio: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips [N, W] as the codec reconstructs them, [N, W], and their codes [N, K, T]."""
    codes = encoded(model, audio, batch)
    return decoded(model, codes, batch)[:, : audio.shape[1]], codes


def white_noise(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise in place of clips [N, W], each as loud as its clip."""
    level = np.sqrt((audio.astype(np.float64) ** 2).mean(1, keepdims=True))
    return (level * rng.standard_normal(audio.shape)).astype(np.float32)


def frames_shuffled(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Codes [N, K, T] with the frames of each clip shuffled; each frame stays whole."""
    return np.stack([clip[:, rng.permutation(clip.shape[1])] for clip in codes])


def books_shuffled(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Codes [N, K, T] with each codebook's tokens shuffled separately: no frame stays whole."""
    return rng.permuted(codes, axis=2)


def training_clips(
    count: int, num_frames: int, cache: Path | None = None
) -> tuple[list[PieceSpec], list[Features]]:
    """The clips that the probes are fitted on: rendered ones, every second one degraded.

    Args:
      count: number of clips.
      num_frames: length of a clip, in frames of the composer.
      cache: an npz file that keeps the features for the next call with the same code and arguments.
    """
    specs = [spec_of(seed) for seed in range(PROBE_SEED, PROBE_SEED + count)]
    sources = [Path(str(module.__file__)) for module in (nano_probes, composer, synth)]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources))
    key = f"{digest.hexdigest()} {count} {num_frames}"
    names = [field.name for field in fields(Features)]
    if cache and cache.exists():
        with np.load(cache) as stored:
            if str(stored["key"]) == key:
                rows = zip(*(stored[name] for name in names), strict=True)
                return specs, [Features(*row) for row in rows]
    items = []
    for i in range(count):
        audio = nano_probes.rendered(PROBE_SEED + i, num_frames)[1]
        if i % 2:
            audio = nano_probes.worn(audio, np.random.default_rng(i))
        items.append(features(audio))
        if (i + 1) % 500 == 0:
            say(f"rendered {i + 1} of {count} clips for the probes")
    if cache:
        arrays = {name: np.stack([getattr(item, name) for item in items]) for name in names}
        aside = cache.with_suffix(".partial.npz")
        np.savez(aside, allow_pickle=False, key=np.array(key), **arrays)
        aside.replace(cache)
    return specs, items
