"""Draws examples with their conditions and places them on the devices as batches.

A generator seeded only with (seed, s, r) draws row r of step s. So a resumed run sees the same
examples as an uninterrupted one, and each process draws only its own rows.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from musicgen_jax.conditioning.melody import chroma_frames
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.config.schema import Share, check_ranges
from musicgen_jax.runtime.sharding import ROWS
from musicgen_jax.training.batch import Batch

Tokenize = Callable[[list[str | None]], tuple[np.ndarray, np.ndarray]]
Rows = TypeVar("Rows")  # a pytree of arrays [B, ...]


class Examples(Protocol):
    """A source of training segments."""

    def segment(self, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, str]:
        """One random segment: codes [K, frames] and its prompt."""
        ...


@runtime_checkable
class MelodyExamples(Protocol):
    """A source of training segments for a melody model."""

    def segment_with_chroma(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, np.ndarray | None]:
        """Codes [K, frames], prompt, and the segment's melody: [T, bins], or None."""
        ...


class StyleExamples(Protocol):
    """A source of training segments for a style model."""

    @property
    def style_shape(self) -> tuple[int, int]:
        """Number of codebooks and of tokens P of a style."""
        ...

    def segment_with_style(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, tuple[np.ndarray, slice] | None]:
        """Codes [K, frames], prompt, and a style or None: its codes [books, P] and its frames."""
        ...


@runtime_checkable
class LabelledExamples(Protocol):
    """A source of training segments with frame labels; see `LMTrainConfig.label_classes`."""

    def segment_with_labels(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, np.ndarray]:
        """Codes [K, frames], prompt, and labels int [A, frames]; -1 for an unknown label."""
        ...


@runtime_checkable
class LabelledMelodyExamples(Protocol):
    """A source of training segments with frame labels for a melody model."""

    def segment_with_chroma_and_labels(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, np.ndarray | None, np.ndarray]:
        """Codes [K, frames], prompt, melody [T, bins] or None, and labels int [A, frames]."""
        ...


@dataclasses.dataclass(frozen=True)
class Dropout:
    """How often an example loses its conditions; guidance needs a model trained without them.

    These are audiocraft's `ClassifierFreeGuidanceDropout` and `AttributeDropout`, in this order.
    audiocraft decides once for the whole batch of a process; here each example decides for itself.
    """

    everything: Share = 0.15  # all conditions at once
    description: Share = 0.0  # the prompt alone
    self_wav: Share = 0.0  # the melody or the style alone

    def __post_init__(self) -> None:
        check_ranges(self)


# For melody models: audiocraft's conditioner/chroma2music.yaml.
MELODY_DROPOUT = Dropout(everything=0.2, self_wav=0.5)
# For the style model: audiocraft's conditioner/style2music.yaml.
STYLE_DROPOUT = Dropout(everything=0.1, description=0.4, self_wav=0.4)


def fixed_length(tokenizer: Tokenize, length: int) -> Tokenize:
    """A tokenizer that pads or cuts texts to `length` tokens, so that training compiles once."""

    def tokenize(texts: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = tokenizer(texts)
        width = ((0, 0), (0, max(0, length - ids.shape[1])))
        ids, mask = np.pad(ids, width), np.pad(mask, width)
        return ids[:, :length], mask[:, :length]

    return tokenize


def melody_shape(model: MusicGenConfig) -> tuple[int, int] | None:
    """The shape (T', bins) of the melody of a melody model; None for other models."""
    bins = model.lm.chroma_bins
    return (chroma_frames(model), bins) if bins else None


def draw(
    examples: Any,
    tokenize: Tokenize,
    dropout: Dropout,
    seed: tuple[int, int],
    rows: range,
    frames: int,
    *,
    chroma_shape: tuple[int, int] | None = None,
    styled: bool = False,
    labelled: bool = False,
) -> Batch:
    """Draws some rows of a batch.

    If a segment is shorter than the model's window, its melody is repeated to fill the window, as
    in generation, where the model always sees a whole window of melody.

    Each example uses a random number of style codebooks, counted from the first; audiocraft draws
    one number for the whole batch.

    Args:
      examples: `Examples`; `MelodyExamples` for a melody model, `StyleExamples` for a style model;
        for training with labels, `LabelledExamples` or `LabelledMelodyExamples`.
      tokenize: prompts to (ids [B, L], mask [B, L]) of one fixed L.
      dropout: how often conditions are left out.
      seed: the seed of the run, and the step.
      rows: numbers of the rows.
      frames: T.
      chroma_shape: shape of a melody model's chroma, see `melody_shape`.
      styled: whether to draw styles, for a style model.
      labelled: whether to draw labels; not for a style model.
    """
    codes, prompts, audio, labels = [], [], [], []
    for row in rows:
        rng = np.random.default_rng(np.random.SeedSequence(seed[0], spawn_key=(seed[1], row)))
        own = None  # the melody, or the style and its frames
        if chroma_shape and labelled:
            segment, prompt, own, known = examples.segment_with_chroma_and_labels(rng, frames)
            labels.append(known)
        elif chroma_shape:
            segment, prompt, own = examples.segment_with_chroma(rng, frames)
        elif styled:
            segment, prompt, own = examples.segment_with_style(rng, frames)
        elif labelled:
            segment, prompt, known = examples.segment_with_labels(rng, frames)
            labels.append(known)
        else:
            segment, prompt = examples.segment(rng, frames)
        everything, description, self_wav = rng.random(3)
        drop = everything < dropout.everything
        codes.append(segment)
        prompts.append(None if drop or description < dropout.description else prompt or None)
        own = None if drop or self_wav < dropout.self_wav else own
        if styled and own is not None:
            own = own[0][: rng.integers(len(own[0])) + 1], own[1]
        audio.append(own)
    batch = Batch(np.stack(codes).astype(np.int32), *tokenize(prompts))
    if labelled:
        batch = dataclasses.replace(batch, labels=np.stack(labels).astype(np.int32))
    has_audio = np.array([own is not None for own in audio])
    if styled:
        style = np.full((len(rows), *examples.style_shape), -1, np.int32)
        counted = np.ones((len(rows), frames), bool)
        for row in np.flatnonzero(has_audio):
            excerpt, excerpt_frames = audio[row]
            style[row, : len(excerpt)] = excerpt
            counted[row, excerpt_frames] = False  # could be copied; audiocraft excludes them too
        return dataclasses.replace(batch, style=style, has_audio=has_audio, counted=counted)
    if not chroma_shape:
        return batch
    chroma = np.zeros((len(rows), *chroma_shape), np.float32)
    for row in np.flatnonzero(has_audio):
        chroma[row] = audio[row][np.arange(chroma_shape[0]) % len(audio[row])]
    return dataclasses.replace(batch, chroma=chroma, has_audio=has_audio)


def place(make: Callable[[range], Rows], count: int, mesh: Mesh | None) -> Rows:
    """Spreads `count` rows over the devices; each process makes only the rows of its own devices.

    Args:
      make: takes the numbers of neighbouring rows and returns a pytree of arrays of them.
      count: B.
      mesh: None for one device.
    """
    if mesh is None:
        return make(range(count))
    where = NamedSharding(mesh, ROWS)
    indices = where.addressable_devices_indices_map((count,)).values()
    slices = [index[0] for index in indices if index is not None]
    spans = [part.indices(count)[:2] for part in slices]
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)

    def globally(array: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(count)
            return array[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback((count, *array.shape[1:]), where, part)

    return jax.tree.map(globally, make(range(first, last)))


def prefetch(items: Iterator) -> Iterator:
    """The same items; each is made in a thread while the caller works on the previous one."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        nothing = object()
        future = pool.submit(next, items, nothing)
        while (item := future.result()) is not nothing:
            future = pool.submit(next, items, nothing)
            yield item
