"""Examples to batches on the devices: which ones, which of their conditions, in what order.

Row r of step s is drawn by a generator seeded with (seed, s, r) and nothing else. So a run that is
taken up again sees what it would have seen, and each of many processes draws only its own rows.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from musicgen_jax.conditioning.melody import chroma_frames
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.runtime.sharding import ROWS

Tokenize = Callable[[list[str | None]], tuple[np.ndarray, np.ndarray]]
# Codes, ids, mask; of a melody or a style model also chroma or style, and whether it is given; of a
# style model also which frames it is not of.
Arrays = tuple[Any, ...]


class Examples(Protocol):
    """Where training takes its segments from."""

    def segment(self, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, str]:
        """One random segment: codes [K, frames] and its prompt."""
        ...


@runtime_checkable
class MelodyExamples(Protocol):
    """Where the training of a melody model takes its segments from."""

    def segment_with_chroma(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, np.ndarray | None]:
        """Codes [K, frames], prompt, and the segment's melody: [T, bins], or None."""
        ...


class StyleExamples(Protocol):
    """Where the training of a style model takes its segments from."""

    @property
    def style_shape(self) -> tuple[int, int]:
        """Codebooks and tokens P of a style."""
        ...

    def segment_with_style(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, tuple[np.ndarray, slice] | None]:
        """Codes [K, frames], prompt, and a style or None: codes [books, P], and of which frames."""
        ...


@runtime_checkable
class LabelledExamples(Protocol):
    """Where training takes its segments from if more is known of them, see `LMTrainConfig`."""

    def segment_with_labels(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, np.ndarray]:
        """Codes [K, frames], prompt, and labels, int [A, frames], -1 where one is not known."""
        ...


@dataclasses.dataclass(frozen=True)
class Dropout:
    """How often conditions are left out of an example, so that guidance has what to compare with.

    audiocraft's `ClassifierFreeGuidanceDropout`, then `AttributeDropout`; it decides once for the
    whole batch of a process, here each example for itself.
    """

    everything: float = 0.15  # all conditions at once
    description: float = 0.0  # the prompt alone
    self_wav: float = 0.0  # the melody or the style alone

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ValueError(f"{field.name} must be from 0 to 1, got {value}")


# Of melody models: audiocraft's conditioner/chroma2music.yaml.
MELODY_DROPOUT = Dropout(everything=0.2, self_wav=0.5)
# Of the style model: its conditioner/style2music.yaml.
STYLE_DROPOUT = Dropout(everything=0.1, description=0.4, self_wav=0.4)


def fixed_length(tokenizer: Tokenize, length: int) -> Tokenize:
    """A tokenizer whose texts are padded or cut to `length` tokens: one compilation for all."""

    def tokenize(texts: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = tokenizer(texts)
        width = ((0, 0), (0, max(0, length - ids.shape[1])))
        ids, mask = np.pad(ids, width), np.pad(mask, width)
        return ids[:, :length], mask[:, :length]

    return tokenize


def melody_shape(model: MusicGenConfig) -> tuple[int, int] | None:
    """T' and bins of the melody that stands before a model's tokens; None of a text model."""
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
) -> Arrays:
    """Some rows of a batch.

    The melody of a segment shorter than the model's window repeats, as in generation a melody does:
    there the music's first frame comes after as many frames of melody, whatever its length.

    Of a style each example uses a random number of codebooks, from the first on; audiocraft draws
    one for the whole batch.

    Args:
      examples: `Examples`, of a melody model `MelodyExamples`, of a style model `StyleExamples`,
        with labels `LabelledExamples`.
      tokenize: prompts to (ids [B, L], mask [B, L]) of one fixed L.
      dropout: of conditions.
      seed: of the run, and the step.
      rows: numbers of the rows.
      frames: T.
      chroma_shape: of a melody model, see `melody_shape`.
      styled: whether styles are drawn, of a style model.
      labelled: whether labels are drawn; not of a melody or a style model.

    Returns:
      codes int32 [B, K, T], ids and mask [B, L]; with labels also these, int32
      [B, A, T]; of a melody model also chroma float32 [B, T', bins] and bool [B], whether there
      is one; of a style model codes of the style int32 [B, books, P], -1 where a codebook is not
      used, bool [B], whether there is one, and bool [B, T], True for frames that it is not of.
    """
    codes, prompts, heard, labels = [], [], [], []
    for row in rows:
        rng = np.random.default_rng(np.random.SeedSequence(seed[0], spawn_key=(seed[1], row)))
        wav = None  # what is heard of the segment's audio
        if chroma_shape:
            segment, prompt, wav = examples.segment_with_chroma(rng, frames)
        elif styled:
            segment, prompt, wav = examples.segment_with_style(rng, frames)
        elif labelled:
            segment, prompt, known = examples.segment_with_labels(rng, frames)
            labels.append(known)
        else:
            segment, prompt = examples.segment(rng, frames)
        everything, description, self_wav = rng.random(3)
        drop = everything < dropout.everything
        codes.append(segment)
        prompts.append(None if drop or description < dropout.description else prompt or None)
        wav = None if drop or self_wav < dropout.self_wav else wav
        if styled and wav is not None:
            wav = wav[0][: rng.integers(len(wav[0])) + 1], wav[1]
        heard.append(wav)
    batch = (np.stack(codes).astype(np.int32), *tokenize(prompts))
    if labelled:
        return (*batch, np.stack(labels).astype(np.int32))
    given = np.array([wav is not None for wav in heard])
    if styled:
        stacked = np.full((len(rows), *examples.style_shape), -1, np.int32)
        elsewhere = np.ones((len(rows), frames), bool)
        for row in np.flatnonzero(given):
            style, heard_frames = heard[row]
            stacked[row, : len(style)] = style
            elsewhere[row, heard_frames] = False
        return (*batch, stacked, given, elsewhere)
    if not chroma_shape:
        return batch
    stacked = np.zeros((len(rows), *chroma_shape), np.float32)
    for row in np.flatnonzero(given):
        stacked[row] = heard[row][np.arange(chroma_shape[0]) % len(heard[row])]
    return (*batch, stacked, given)


def place(make: Callable[[range], Arrays], count: int, mesh: Mesh | None) -> Arrays:
    """A batch of `count` rows over the devices; each process makes only what its own hold.

    Args:
      make: numbers of neighbouring rows to arrays of them.
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
    own = make(range(first, last))

    def globally(array: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(count)
            return array[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback((count, *array.shape[1:]), where, part)

    return tuple(globally(array) for array in own)


def ahead(items: Iterator) -> Iterator:
    """The same items, each made while the one before is worked on."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        nothing = object()
        future = pool.submit(next, items, nothing)
        while (item := future.result()) is not nothing:
            future = pool.submit(next, items, nothing)
            yield item
