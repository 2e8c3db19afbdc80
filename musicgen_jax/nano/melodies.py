"""Composed pieces with melodies: the same tune on other instruments, for training a melody model.

A melody model hears a tune on one instrument and plays it on another. So each piece gets several
renderings of its tune: on other instruments, an octave away, out of tune, alone or with its band,
with noise. Their chroma is the condition, and the codes of the piece itself are the target.
"""

import dataclasses
from pathlib import Path

import numpy as np

from musicgen_jax import files
from musicgen_jax.conditioning.key import loudest_classes
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.nano import captions, composer, synth
from musicgen_jax.nano.composer import Note, PieceSpec
from musicgen_jax.nano.pieces import spec_of

_SLIPS = 0.03  # share of chroma frames that training replaces by any pitch class
_SHARP = 27  # cents: roughly how much higher than A = 440 Hz the composer is tuned
_CENTS = 40  # how far a rendering is out of tune at most
_LONG = 30 * composer.FRAME_RATE  # frames in which a piece may begin
_AGES = 12  # of a note, in frames; older ones count as the oldest

LABELS = (13, _AGES)
"""How many values each label of `tune_labels` has."""


@dataclasses.dataclass(frozen=True)
class MelodyPieces:
    """Composed pieces, which the model plays, and their tunes, which it hears."""

    codes: np.ndarray  # int16 [N, K, T]
    tunes: np.ndarray  # int8 [N, 2, T], see `tune_labels`
    chroma: np.ndarray  # uint8 [N, renderings, T'], the loudest pitch class
    seeds: np.ndarray  # int64 [N]

    @staticmethod
    def load(path: Path) -> "MelodyPieces":
        """Reads a file that `save` wrote."""
        with np.load(path) as arrays:
            return MelodyPieces(**{name: arrays[name] for name in arrays})

    def save(self, path: Path) -> None:
        """Writes an npz file."""
        with files.new_file(path) as file:
            np.savez(file, **dataclasses.asdict(self))

    def segment_with_chroma_and_labels(
        self, rng: np.random.Generator, frames: int
    ) -> tuple[np.ndarray, str, np.ndarray, np.ndarray]:
        """Draws a piece, a caption and a rendering of its tune.

        Args:
          rng: draws the piece, the words, the rendering and a few wrong pitches in it.
          frames: length of the codes, from the beginning of the piece.

        Returns:
          codes [K, frames], the caption, one-hot chroma float32 [T', 12] and the tune int8
          [2, frames], see `tune_labels`.
        """
        index = int(rng.integers(len(self.codes)))
        caption = captions.training_caption(spec_of(int(self.seeds[index])), rng)
        pitches = self.chroma[index, int(rng.integers(self.chroma.shape[1]))].copy()
        slips = rng.random(len(pitches)) < _SLIPS
        pitches[slips] = rng.integers(0, 12, int(slips.sum()))
        heard = np.eye(12, dtype=np.float32)[pitches]
        return self.codes[index, :, :frames], caption, heard, self.tunes[index, :, :frames]


def excerpt(seed: int, num_frames: int) -> tuple[PieceSpec, list[Note]]:
    """The spec of the piece of a seed, and its notes from the beginning of one of its phrases."""
    rng = np.random.default_rng(seed)
    spec = composer.sample_spec(rng)
    notes = composer.compose(spec, rng, _LONG + num_frames)
    phrase = 4 * composer.EIGHTHS_PER_BAR[spec.metre] * spec.frames_per_eighth
    start = int(rng.integers(0, _LONG // phrase + 1)) * phrase
    moved = [dataclasses.replace(note, onset_frame=note.onset_frame - start) for note in notes]
    return spec, [note for note in moved if 0 <= note.onset_frame < num_frames]


def is_melody(spec: PieceSpec, note: Note) -> bool:
    """Whether a note belongs to the tune, not to the accompaniment.

    A lead that accompanies itself plays its accompaniment at half the loudness.
    """
    return note.instrument == spec.lead and note.velocity > 0.6


def tune_labels(spec: PieceSpec, notes: list[Note], num_frames: int) -> np.ndarray:
    """The tune in each frame, which a melody model learns to predict next to the codes.

    The next code mostly continues the same note, so the codes alone hardly teach a model to listen
    to the melody. These labels do.

    Args:
      spec: of the piece.
      notes: of the piece.
      num_frames: T.

    Returns:
      int8 [2, T]: the pitch class of the last note of the tune, 12 before the first one; and how
      many frames ago that note began.
    """
    labels = np.empty((2, num_frames), np.int8)
    labels[:] = [[12], [_AGES - 1]]
    for note in notes:
        if is_melody(spec, note):
            labels[0, note.onset_frame :] = note.pitch % 12
            since = np.arange(num_frames - note.onset_frame)
            labels[1, note.onset_frame :] = np.minimum(since, _AGES - 1)
    return labels


def played_on(
    spec: PieceSpec,
    notes: list[Note],
    lead: str,
    *,
    accompaniment: str | None = None,
    drums: bool = False,
    octaves: int = 0,
) -> list[Note]:
    """The tune of a piece on another instrument.

    Args:
      spec: of the piece.
      notes: of the piece.
      lead: the instrument that plays the tune.
      accompaniment: the instrument that plays the chords; None leaves out chords and bass.
      drums: whether to keep the drums.
      octaves: how much higher the tune is.
    """
    played = []
    for note in notes:
        if is_melody(spec, note):
            pitch = note.pitch + 12 * octaves
            played.append(dataclasses.replace(note, instrument=lead, pitch=pitch))
        elif not note.pitch:
            played += [note] if drums else []
        elif accompaniment:
            own = note.instrument if note.instrument == "bass" else accompaniment
            played.append(dataclasses.replace(note, instrument=own))
    return played


def rendering(
    spec: PieceSpec, notes: list[Note], rng: np.random.Generator, model: MusicGenConfig
) -> np.ndarray:
    """One random rendering of the tune as a melody model hears it: uint8 [T']."""
    others = [lead for lead in composer.LEADS if lead != spec.lead]
    band = str(rng.choice(composer.ACCOMPANIMENTS)) if rng.random() < 0.4 else None
    played = played_on(
        spec,
        notes,
        spec.lead if rng.random() < 0.1 else str(rng.choice(others)),
        accompaniment=band,
        drums=bool(rng.random() < 0.3),
        octaves=int(rng.choice((-1, 0, 0, 1))),
    )
    num_frames = int(model.max_duration * model.frame_rate)
    audio = synth.render(played, num_frames)
    if rng.random() < 0.3:
        level = float(np.sqrt(np.mean(np.square(audio)))) * 10 ** rng.uniform(-1.5, -0.3)
        audio = audio + (level * rng.standard_normal(len(audio))).astype(np.float32)
    return loudest(audio, model, cents=round(_SHARP + rng.uniform(-_CENTS, _CENTS), -1))


def loudest(audio: np.ndarray, model: MusicGenConfig, *, cents: float = 0.0) -> np.ndarray:
    """The loudest pitch class of each chroma frame, as in `chroma.melody_chroma`.

    Args:
      audio: float32 [W], mono, at the model's rate.
      model: its chroma's window and hop count.
      cents: how much too high the audio is tuned; this much is subtracted.

    Returns:
      uint8 [T'].
    """
    grid = model.lm.chroma_window, model.lm.chroma_hop
    return loudest_classes(audio, model.sample_rate, *grid, cents / 100)[0]
