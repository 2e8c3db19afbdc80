"""Encodes audio files to shards of codes once, before a language model trains on them."""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from musicgen_jax.codec import Codec
from musicgen_jax.conditioning.excerpt import DEFAULT_EXCERPT
from musicgen_jax.config import OFFICIAL_MODELS, LMConfig
from musicgen_jax.console import Bar, plain
from musicgen_jax.errors import UserError
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.encodec.channels import encode as encode_rows
from musicgen_jax.runtime.ahead import Item, map_ahead
from musicgen_jax.runtime.tuning import tuning
from musicgen_jax.storage import checkpoint, hub
from musicgen_jax.training.data import metadata, sources
from musicgen_jax.training.data.listener import Listener
from musicgen_jax.training.data.shard_writer import ShardWriter
from musicgen_jax.training.data.shards import FORMAT, VERSION, CodeClip, CodeShards
from musicgen_jax.training.data.sources import AudioMeta, Skipped
from musicgen_jax.training.data.style_listener import StyleListener

# Context on each side of a piece, and silence kept after a file. The convolutions of the official
# codec see a tenth of it. The rest gives its LSTM time to forget that the piece began here.
CONTEXT_SECONDS = 1.0
_READERS = 4  # threads that read and resample files ahead of the codec


@dataclasses.dataclass(frozen=True)
class Windows:
    """Cuts a file of any length into pieces of one length for the codec.

    The codec sees extra context frames on both sides of a piece (the first piece has none before
    it), and their codes are discarded. So the remaining codes are the same as if the file were
    encoded whole, except for the long memory of an LSTM.

    Attributes:
      hop: samples per frame.
      stride: frames kept per piece.
      context: frames discarded on each side.
    """

    hop: int
    stride: int
    context: int

    @property
    def samples(self) -> int:
        """W, the length of a piece."""
        return (self.stride + 2 * self.context) * self.hop

    def cut(self, audio: np.ndarray) -> Iterator[tuple[np.ndarray, slice, bool]]:
        """Yields (piece [C, W], frames to keep, whether it is the last) of audio [C, W'].

        The audio is extended by `context` frames of silence, whose codes are kept too.
        """
        total = self.frames(audio) + self.context
        for first in range(0, total, self.stride):
            start = max(0, first - self.context)
            piece = audio[:, start * self.hop :][:, : self.samples]
            piece = np.pad(piece, ((0, 0), (0, self.samples - piece.shape[1])))
            kept = min(self.stride, total - first)
            yield piece, slice(first - start, first - start + kept), first + kept == total

    def frames(self, audio: np.ndarray) -> int:
        """The number of frames T of audio [C, W]."""
        return -(-audio.shape[1] // self.hop)


def encode(
    source: str | os.PathLike,
    out: str | os.PathLike,
    model: str | os.PathLike,
    *,
    seconds: float = 30.0,
    shard_mb: float = 16.0,
    batch_size: int | None = None,
    melody: bool = False,
    separate: bool | None = None,
    excerpt_length: float = DEFAULT_EXCERPT,
    log: Callable[[str], None] = lambda line: None,
    bar: Bar = plain,
) -> CodeShards:
    """Encodes every audio file of a folder or a manifest; resumes after an interruption.

    Args:
      source: see `sources.find`.
      out: a new folder, or the output folder of the same command. In an existing folder, encoding
        resumes, and files added since are encoded too.
      model: name or folder of a model or a codec. Its codec and channels are used. For a melody or
        style model, the melodies or styles of each clip are stored next to the codes.
      seconds: length of the pieces that go through the codec. The codes hardly depend on it.
      shard_mb: size of a shard in MB. At most one shard is lost if the process is killed.
      batch_size: pieces per batch (default: 1 on a CPU and 8 elsewhere).
      melody: whether to store melodies for any model.
      separate: whether the separator `htdemucs` removes drums and bass before the melody is
        extracted (default: only if the separator is installed).
      excerpt_length: length in seconds of the excerpts of a style model. A shorter clip has no
        style.
      log: receives a line for every shard, and one about melodies or styles.
      bar: wraps the iteration over clips.

    Returns:
      The opened shards.

    Raises:
      UserError: there is no audio, all of it is broken, no language model can use the codec, or the
        folder holds unrelated files, codes with other settings or codes of files that have changed.
        Also if melodies need a separator that is not installed, or if the excerpts are too short
        or too long.
    """
    _check("seconds", seconds, 1, 600)
    _check("shard_mb", shard_mb, 0, 4096)
    _check("batch_size", 1 if batch_size is None else batch_size, 1, 4096)
    skipped = Skipped()
    metas = sources.find(source, skipped)
    codec, channels, own, style = load_codec(model)
    if own is None and melody:
        own = OFFICIAL_MODELS["facebook/musicgen-melody"].lm
    settings = _settings(codec, channels, seconds)
    hear_melody = hear_style = None
    if own is not None:
        hear_melody = Listener(codec.sample_rate, codec.config.hop_length, own, separate)
    if style is not None:
        hear_style = StyleListener(style, excerpt_length)
    listeners = [hear for hear in (hear_melody, hear_style) if hear is not None]
    for hear in listeners:
        settings |= hear.settings
    out = Path(out)
    shard_frames = max(1, int(shard_mb * 2**20 / (2 * settings["codebooks"])))
    writer = ShardWriter(out, settings, shard_frames, log)
    todo = writer.without_finished(metas)
    for hear in listeners if todo else ():
        log(hear.line)
    if batch_size is None:
        batch_size = tuning().encode_batch
    rate = codec.config.frame_rate
    windows = Windows(
        codec.config.hop_length, math.ceil(seconds * rate), math.ceil(CONTEXT_SECONDS * rate)
    )
    run = functools.partial(_encode, codec.encodec)

    def load(meta: AudioMeta) -> tuple[CodeClip, np.ndarray] | Exception:
        try:
            info, found = metadata.read(meta.file), meta.file.stat()
            wav = sources.read_audio(meta, codec.sample_rate, channels)
        except OSError as error:
            return UserError(f"cannot read {meta.file}: {error.strerror}")
        except ValueError as error:  # UserError is one
            return error
        stamp, frames = (found.st_size, found.st_mtime_ns), windows.frames(wav)
        stored = frames + windows.context
        return CodeClip(meta.path, 0, frames, stored, meta.weight, stamp, info), wav

    def listen(clip: CodeClip, wav: np.ndarray) -> dict[str, np.ndarray]:
        heard = {}
        if hear_melody is not None:
            heard["chroma"] = hear_melody(wav, clip.stored)
        if hear_style is not None:
            heard["style"] = hear_style(wav, clip.frames)
        return heard

    def loaded() -> Iterator[tuple[tuple[CodeClip, dict[str, np.ndarray]], np.ndarray]]:
        clips = zip(todo, map_ahead(load, todo, _READERS), strict=True)
        for meta, clip in bar(clips, total=len(todo), desc="encoding", unit="clip"):
            if isinstance(clip, Exception):
                skipped.add(meta.path, clip)
            else:
                clip, wav = clip
                yield (clip, listen(clip, wav)), wav

    for (clip, heard), codes in encode_audio(run, loaded(), windows, batch_size):
        writer.add(clip, codes, **heard)
    silence = run(np.zeros((batch_size, channels, windows.samples), np.float32))
    writer.finish(silence[0, :, windows.context + windows.stride - 1].tolist(), skipped)
    made = CodeShards.open(out)
    if bare := sum(clip.info.is_bare for clip in made.clips):
        log(
            f"{bare} of {len(made)} clips have no description: write NAME.txt, or NAME.json with "
            '{"description": ...}, next to NAME.wav'
        )
    return made


def load_codec(model: str | os.PathLike) -> tuple[Codec, int, LMConfig | None, Path | None]:
    """Loads the codec of a model's or a codec's folder.

    Returns:
      the codec; C, the number of audio channels; the language model's config of a melody model, or
      None; and the folder of a style model, or None.

    Raises:
      UserError: there is no codec, or no language model can use it, for example because it stores
        levels next to its codes.
    """
    folder = hub.find_codec(model)
    config = checkpoint.load_info(folder).config
    codec = Codec.from_pretrained(folder)
    if codec.config.normalize or codec.config.segment_length or codec.config.bins > 1 << 15:
        raise UserError(
            f"the codec of {model} does not suit any language model: use the codec of a MusicGen"
        )
    if config is None:
        return codec, codec.channels, None, None
    style = folder if config.lm.style else None
    melody = config.lm if config.lm.chroma_bins else None
    return codec, config.audio_channels, melody, style


def _encode(encodec: Encodec, audio: np.ndarray) -> np.ndarray:
    """Codes int16 [B, K, T] of audio [B, C, W]."""
    return np.asarray(encode_rows(encodec, audio), np.int16)


def encode_audio(
    run: Callable[[np.ndarray], np.ndarray],
    clips: Iterable[tuple[Item, np.ndarray]],
    windows: Windows,
    batch_size: int,
) -> Iterator[tuple[Item, np.ndarray]]:
    """Encodes clips of any lengths in batches of one shape, so it compiles only once.

    Args:
      run: maps audio [B, C, W] to codes [B, K, T].
      clips: pairs of a label and audio [C, W'].
      windows: how to cut the clips.
      batch_size: B.

    Yields:
      Pairs of the label and codes [K, T], including the silence after the clip, in the same order.
    """
    pieces = ((label, *piece) for label, audio in clips for piece in windows.cut(audio))
    parts: list[np.ndarray] = []
    while batch := list(itertools.islice(pieces, batch_size)):
        audio = np.stack([piece for _, piece, _, _ in batch])
        audio = np.pad(audio, ((0, batch_size - len(batch)), (0, 0), (0, 0)))
        for (label, _, kept, last), codes in zip(batch, run(audio), strict=False):
            parts.append(codes[:, kept])
            if last:
                yield label, np.concatenate(parts, axis=1)
                parts = []


def _settings(codec: Codec, channels: int, seconds: float) -> dict:
    """The settings that define the codes; all codes in a folder share them."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "codec": codec.name,
        "fingerprint": codec.fingerprint,
        "sample_rate": codec.sample_rate,
        "hop_length": codec.config.hop_length,
        "audio_channels": channels,
        "codebooks": codec.config.n_q * (channels // codec.channels),
        "card": codec.config.bins,
        "seconds": float(seconds),
    }


def _check(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest or not value:  # also rejects NaN
        raise UserError(f"{name} must be above 0, from {lowest} to {highest}, got {value}")
