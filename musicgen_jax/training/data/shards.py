"""A folder of clips that were encoded once, for drawing training segments.

    settings.json      the encoder settings, shared by all shards
    codes-00000.npy    int16 [frames, K], the codes of the clips in sequence
    codes-00000.json   the clips of the shard, their metadata and a digest of the codes
    index.json         the shards and their digests; written last

Melody models also have

    chroma-00000.npy   uint8 [frames, places], the loudest pitch classes; see `ChromaGrid`

Style models also have

    style-00000.npy    uint16 [excerpts, books, tokens], the excerpts of the clips in sequence; see
                       `StyleGrid`

Every file is written atomically. A folder without an index is unfinished.

If a clip is shorter than a segment, the segment continues with the codes of silence. audiocraft
pads the audio and then encodes it; to match, each clip is stored with the codes of one second of
silence after it, in which the music dies away. After that second the codes of silence are constant.
"""

import dataclasses
import hashlib
import itertools
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from musicgen_jax.config import LMConfig
from musicgen_jax.config.schema import Between, Natural, Size, from_dict, parse_json, to_dict
from musicgen_jax.errors import UserError, user_error
from musicgen_jax.training.data import prompts, sampling
from musicgen_jax.training.data.chroma_grid import ChromaGrid
from musicgen_jax.training.data.metadata import MusicInfo, Text
from musicgen_jax.training.data.style_grid import StyleGrid

FORMAT, VERSION = "musicgen-jax code shards", 1
INDEX, SETTINGS = "index.json", "settings.json"
MAX_JSON = 1 << 26  # bytes
_MAX_SHARDS = 100_000
_MAX_BOOKS = 128
_MAX_COUNT = 1 << 40
_Count = Annotated[int, Between(0, _MAX_COUNT)]


def array_name(kind: str, number: int) -> str:
    """The name of a shard's array file; `kind` is "codes", "chroma" or "style"."""
    return f"{kind}-{number:05d}.npy"


def clips_name(number: int) -> str:
    """The name of the file that lists the clips of a shard."""
    return f"codes-{number:05d}.json"


@dataclasses.dataclass(frozen=True)
class CodeClip:
    """A clip in a shard.

    Attributes:
      path: of the audio, in its folder or manifest.
      start: first frame of the clip in the shard.
      frames: number of frames of music.
      stored: number of frames in the shard, including the silence after the music.
      weight: relative frequency of drawing this clip; None counts as 1.
      source: size in bytes and modification time (ns) of the audio when it was encoded.
      info: metadata of the music.
    """

    path: Text
    start: _Count
    frames: Annotated[int, Between(1, _MAX_COUNT)]
    stored: _Count
    weight: Annotated[float, Between(0)] | None
    source: tuple[_Count, Natural]
    info: MusicInfo

    def __post_init__(self) -> None:
        if self.stored < self.frames:
            raise ValueError("a clip has fewer frames stored than music")

    def to_dict(self) -> dict:
        """The clip as plain JSON types."""
        return {**to_dict(self), "info": self.info.to_dict()}


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """A shard in the index: the sizes of its files in bytes and the digest of its clip list."""

    frames: Annotated[int, Between(1, _MAX_COUNT)]
    bytes: _Count
    clips_sha256: str
    clips: _Count = 0
    chroma_bytes: _Count = 0
    style_bytes: _Count = 0


@dataclasses.dataclass(frozen=True)
class Index:
    """`index.json` without its melody and style fields; see `ChromaGrid` and `StyleGrid`."""

    format: str
    version: int
    codec: str
    fingerprint: str
    sample_rate: Size
    hop_length: Size
    audio_channels: Size
    codebooks: Annotated[int, Between(1, _MAX_BOOKS)]
    card: Annotated[int, Between(1, 1 << 15)]
    silence: tuple[_Count, ...]
    skipped: _Count
    shards: Annotated[tuple[ShardEntry, ...], Between(1, _MAX_SHARDS)]
    skipped_first: tuple[str, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if len(self.silence) != self.codebooks or max(self.silence) > self.card:
            raise ValueError("silence does not fit codebooks and card")


@dataclasses.dataclass(frozen=True)
class CodeSegment:
    """A stretch of a clip's codes.

    Attributes:
      codes: int32 [K, T].
      n_frames: number of frames of music among the T; the rest is silence after the clip.
      start: first frame of the segment in the clip.
      prompt: the prompt; "" means no prompt.
      path: of the clip.
      chroma: float32 [T', bins], the melody, one-hot; None if the folder has no melodies.
      styles: uint16 [N, books, P], codes of the style excerpts that lie within the segment's
        music; None if the folder has no styles.
      style_starts: int [N], first frame of each excerpt in the segment; None if there are no
        styles.
    """

    codes: np.ndarray
    n_frames: int
    start: int
    prompt: str
    path: str
    chroma: np.ndarray | None = None
    styles: np.ndarray | None = None
    style_starts: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        """Bool [T], False after the end of the clip."""
        return np.arange(self.codes.shape[1]) < self.n_frames


class CodeShards:
    """The codes in a folder; see `open`.

    Attributes:
      folder: the folder of the shards.
      clips: the encoded clips.
      codebooks: K.
      card: number of values of a code; all codes are below it.
      frame_rate: frames per second.
      sample_rate: of the encoded audio, in Hz.
      audio_channels: of the encoded audio.
      codec: the fingerprint of the codec; see `musicgen_jax.Codec.fingerprint`.
      fingerprint: identifies the contents of the shards, independent of the folder's name.
      num_frames_total: number of frames of music in all clips.
      skipped: number of audio files that could not be encoded.
      chroma_bins: pitch classes of the melodies; 0 if the folder has no melodies.
      styles: layout of the style excerpts; None if the folder has no styles.
      unstyled: number of clips without a style, because they are shorter than an excerpt.
    """

    def __init__(
        self,
        folder: Path,
        config: sampling.SamplingConfig,
        prompt_config: prompts.PromptConfig,
    ):
        self.folder, self.config, self.prompt_config = folder, config, prompt_config
        data = read_file(folder / INDEX)
        self.fingerprint = hashlib.sha256(data).hexdigest()[:16]
        try:
            document = parse_json(data)
            check_format(document)
            chroma, style = _part(document, "chroma_"), _part(document, "style_")
            index = from_dict(Index, document)
            self.codebooks, self.card = index.codebooks, index.card
            self.sample_rate, self.audio_channels = index.sample_rate, index.audio_channels
            self.frame_rate = self.sample_rate / index.hop_length
            self.codec, self.skipped = index.fingerprint, index.skipped
            self.chroma_bins = 0
            if chroma:
                chroma["hop_length"] = index.hop_length
                self._grid = from_dict(ChromaGrid, chroma, "chroma")
                self.chroma_bins = self._grid.bins
            self.styles = from_dict(StyleGrid, style, "style") if style else None
            self._silence = np.array(index.silence, np.int32)[:, None]  # [K, 1]
            self.clips: list[CodeClip] = []
            self._codes: list[np.ndarray] = []
            self._chroma: list[np.ndarray] = []
            self._styles: list[np.ndarray] = []
            self._first_style: list[int] = []  # index of each clip's first style in its shard
            shard_of: list[int] = []
            for number, shard in enumerate(index.shards):
                clips = self._open_shard(number, shard)
                self.clips += clips
                shard_of += [number] * len(clips)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{folder / INDEX} is broken: {error}") from None
        self._shard_of = np.array(shard_of)
        self._frames = np.array([clip.frames for clip in self.clips])
        grid = self.styles
        self.unstyled = len(self) if grid is None else int((self._frames < grid.length).sum())
        self.num_frames_total = int(self._frames.sum())
        weights = [clip.weight for clip in self.clips]
        self._probabilities = sampling.cumulative(self._frames.tolist(), weights, config)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        config: sampling.SamplingConfig = sampling.MUSICGEN_SAMPLING,
        prompt_config: prompts.PromptConfig | None = None,
    ) -> "CodeShards":
        """Opens a folder that `musicgen-jax train encode` wrote.

        The codes stay on disk until they are drawn.

        Args:
          folder: of the shards.
          config: how to draw segments (default: as in the training of MusicGen).
          prompt_config: how to vary prompts (default: as in the training of MusicGen).

        Raises:
          UserError: the folder has no codes, is unfinished or broken, or a file in it has changed.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            if (folder / SETTINGS).is_file():
                raise UserError(
                    f"{folder} is not finished: run the same `musicgen-jax train encode` again"
                )
            raise UserError(f"no codes in {folder}: make them with `musicgen-jax train encode`")
        return cls(folder, config, prompt_config or prompts.PromptConfig())

    def __len__(self) -> int:
        return len(self.clips)

    def codes(self, index: int) -> np.ndarray:
        """All codes of a clip, int32 [K, T], without the silence after it."""
        return self._cut(index, 0, self.clips[index].frames)

    def segment(self, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, str]:
        """Draws a random segment: codes int32 [K, frames] and a prompt."""
        drawn = self.sample(rng, frames)
        return drawn.codes, drawn.prompt

    def segment_with_chroma(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, np.ndarray | None]:
        """Draws a segment as `segment` does, with its melody.

        Returns:
          codes int32 [K, frames], the prompt and the one-hot chroma float32 [T', bins]. T' is the
          number of chroma frames of audio that is `frames` code frames long. The chroma is None if
          the folder has no melodies.
        """
        drawn = self.sample(rng, frames)
        return drawn.codes, drawn.prompt, drawn.chroma

    def segment_with_style(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, tuple[np.ndarray, slice] | None]:
        """Draws a segment as `segment` does, with the style of a random excerpt from it.

        Returns:
          codes int32 [K, frames], the prompt and a pair: the style codes int32 [books, P] and the
          frames of their excerpt. The pair is None if no excerpt lies within the segment's music.
        """
        drawn = self.sample(rng, frames)
        if drawn.styles is None or drawn.style_starts is None or not len(drawn.styles):
            return drawn.codes, drawn.prompt, None
        assert self.styles is not None
        which = rng.integers(len(drawn.styles))
        start = int(drawn.style_starts[which])
        frames_heard = slice(start, start + self.styles.length)
        return drawn.codes, drawn.prompt, (drawn.styles[which].astype(np.int32), frames_heard)

    @property
    def style_shape(self) -> tuple[int, int]:
        """Number of codebooks and tokens of a style."""
        assert self.styles is not None
        return self.styles.books, self.styles.tokens

    def require_chroma(self, lm: LMConfig, model: str | os.PathLike) -> None:
        """Checks that these codes can train a melody model.

        Args:
          lm: of the melody model.
          model: name of the model, or of the model whose codec it uses.

        Raises:
          UserError: the folder has no melodies, or their number of pitch classes, their window or
            their hop differs. The message says how to encode again.
        """
        again = f"`musicgen-jax train encode DATA OUT --model {model} --melody`"
        if self.chroma_bins != lm.chroma_bins:
            there = f"of {self.chroma_bins} pitch classes" if self.chroma_bins else "none"
            raise UserError(
                f"a melody model needs melodies of {lm.chroma_bins} pitch classes, {self.folder} "
                f"holds {there}: {again}"
            )
        ours, theirs = (lm.chroma_window, lm.chroma_hop), (self._grid.window, self._grid.hop)
        if ours != theirs:
            raise UserError(
                f"the model's chroma has a window and a hop of {ours[0]} and {ours[1]} samples, "
                f"{self.folder} has {theirs[0]} and {theirs[1]}: {again}"
            )

    def require_styles(self, conditioner: str, frames: int, model: str | os.PathLike) -> None:
        """Checks that these codes can train a style model.

        Args:
          conditioner: fingerprint of the codebooks of the model's style conditioner.
          frames: length of a segment.
          model: name of the model.

        Raises:
          UserError: the folder has no styles, its styles come from another conditioner, or its
            excerpts do not fit into the segments or clips. The message says how to encode again.
        """
        again = f"`musicgen-jax train encode DATA OUT --model {model}`"
        grid = self.styles
        if grid is None:
            raise UserError(f"a style model needs styles, {self.folder} holds none: {again}")
        if grid.conditioner != conditioner:
            raise UserError(
                f"{self.folder} holds styles of a different conditioner from that of {model}: "
                f"{again}"
            )
        seconds = grid.length / self.frame_rate
        shorter = f"{again[:-1]} --excerpt-length S` with S below {seconds:g}"
        if frames < grid.enough:
            raise UserError(
                f"segments of {frames / self.frame_rate:g} s are too short to hold one of the "
                f"excerpts of {seconds:g} s in {self.folder}: give --seconds "
                f"{(grid.enough + 1) / self.frame_rate:g} or more, or {shorter}"
            )
        if self.unstyled == len(self):
            raise UserError(
                f"every clip in {self.folder} is shorter than an excerpt of {seconds:g} s, whose "
                f"style is kept: {shorter}"
            )

    def sample(self, rng: np.random.Generator, frames: int) -> CodeSegment:
        """Draws a random segment, with its position and its clip.

        Args:
          rng: draws the clip, the position and the prompt.
          frames: T.

        Raises:
          UserError: the shard contains values that are not valid codes.
        """
        index, place = sampling.draw(rng, self._probabilities, self._frames, frames, self.config)
        clip = self.clips[index]
        start = min(int(place), clip.frames - 1)
        codes = self._cut(index, start, start + frames)
        missing = np.repeat(self._silence, frames - codes.shape[1], axis=1)
        prompt = prompts.draw(clip.info, rng, self.prompt_config)
        n_frames = min(frames, clip.frames - start)
        codes = np.concatenate([codes, missing], axis=1)
        chroma = self._melody(index, start, frames) if self.chroma_bins else None
        styles = self._excerpts(index, start, start + n_frames) if self.styles else (None, None)
        return CodeSegment(codes, n_frames, start, prompt, clip.path, chroma, *styles)

    def _cut(self, index: int, start: int, stop: int) -> np.ndarray:
        """Codes int32 [K, T] of a clip from `start` to `stop`, or to the last stored frame."""
        clip, shard = self.clips[index], int(self._shard_of[index])
        stop = min(stop, clip.stored)
        rows = self._codes[shard][clip.start + start : clip.start + stop]
        codes = np.ascontiguousarray(rows.T, np.int32)
        if codes.min() < 0 or codes.max() >= self.card:
            raise UserError(
                f"{self.folder / array_name('codes', shard)} is broken: it holds codes beyond "
                f"{self.card - 1}; encode again"
            )
        return codes

    def _melody(self, index: int, start: int, frames: int) -> np.ndarray:
        """Chroma float32 [T', bins] of part of a clip."""
        clip, shard = self.clips[index], int(self._shard_of[index])
        stored = self._chroma[shard][clip.start : clip.start + clip.stored]
        pitches = self._grid.cut(stored, start, frames)
        if pitches.max() >= self.chroma_bins:
            raise UserError(
                f"{self.folder / array_name('chroma', shard)} is broken: it holds pitch classes "
                f"beyond {self.chroma_bins - 1}; encode again"
            )
        return np.eye(self.chroma_bins, dtype=np.float32)[pitches]

    def _excerpts(self, index: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The excerpts in part of a clip: styles uint16 [N, books, P] and first frames int [N].

        Raises:
          UserError: the shard contains values that are not valid codes of the conditioner.
        """
        assert self.styles is not None
        shard, first = int(self._shard_of[index]), self._first_style[index]
        inside = self.styles.inside(start, stop)
        styles = np.asarray(self._styles[shard][first + inside.start : first + inside.stop])
        if styles.max(initial=0) >= self.styles.bins:
            raise UserError(
                f"{self.folder / array_name('style', shard)} is broken: it holds codes beyond "
                f"{self.styles.bins - 1}; encode again"
            )
        return styles, np.arange(inside.start, inside.stop) * self.styles.stride - start

    def _open_shard(self, number: int, shard: ShardEntry) -> list[CodeClip]:
        frames = shard.frames
        listed = self.folder / clips_name(number)
        data = read_file(listed)
        if hashlib.sha256(data).hexdigest() != shard.clips_sha256:
            raise _changed(listed)
        clips = read_clips(data, listed)
        if not clips or clips[-1].start + clips[-1].stored != frames:
            raise ValueError(f"{listed.name} does not fit it")

        def opened(kind: str, size: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            return _open_array(self.folder / array_name(kind, number), size, shape, dtype)

        self._codes.append(opened("codes", shard.bytes, (frames, self.codebooks), np.int16))
        if self.chroma_bins:
            shape = frames, self._grid.places
            self._chroma.append(opened("chroma", shard.chroma_bytes, shape, np.uint8))
        if self.styles:
            counts = [self.styles.inside(0, clip.frames).stop for clip in clips]
            self._first_style += [0, *itertools.accumulate(counts[:-1])]
            shape = sum(counts), self.styles.books, self.styles.tokens
            self._styles.append(opened("style", shard.style_bytes, shape, np.uint16))
        return clips


def check_format(header: Any) -> None:
    """Checks the format and version fields of `index.json` or `settings.json`.

    Raises:
      ValueError: the format or the version is not supported.
    """
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"not of the format {FORMAT!r}")
    if header.get("version") != VERSION:
        raise ValueError(
            f"of version {header.get('version')!r}, but this musicgen-jax reads {VERSION}"
        )


def _part(document: dict, prefix: str) -> dict:
    """Removes the fields whose names begin with `prefix` and returns them without the prefix."""
    names = [name for name in document if name.startswith(prefix)]
    return {name.removeprefix(prefix): document.pop(name) for name in names}


def read_file(path: Path) -> bytes:
    """Reads a file of bounded size.

    Raises:
      UserError: the file cannot be read or is larger than `MAX_JSON`.
    """
    with user_error("read", path), path.open("rb") as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise UserError(f"cannot read {path}: larger than {MAX_JSON >> 20} MB")
    return data


def read_clips(data: bytes, path: Path) -> list[CodeClip]:
    """Parses the clip list of a shard; each clip must start where the previous one ends.

    Raises:
      UserError: the file is broken.
    """
    try:
        values = parse_json(data)
        if not isinstance(values, dict) or not isinstance(values.get("clips"), list):
            raise ValueError("it lists no clips")
        clips = [from_dict(CodeClip, one, f"clips[{i}]") for i, one in enumerate(values["clips"])]
        ends = [0, *(clip.start + clip.stored for clip in clips)]
        if any(clip.start != end for clip, end in zip(clips, ends, strict=False)):
            raise ValueError("its clips do not follow each other")
    except ValueError as error:
        raise UserError(f"{path} is broken: {error}") from None
    return clips


def _open_array(path: Path, size: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    try:
        if path.stat().st_size != size:
            raise _changed(path)
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UserError:
        raise
    except Exception:  # NumPy parses the header as Python, which fails in many ways
        raise UserError(f"{path} is broken: encode again") from None
    if array.shape != shape or array.dtype != dtype:
        raise _changed(path)
    return array


def _changed(path: Path) -> UserError:
    return UserError(f"{path} changed since it was encoded: encode again into a new folder")
