"""Composes the tunes that train the bundled model.

Real scores have unclear rights, and somebody has to guess their labels. So the small model learns
from music composed here: the supply is unlimited, nobody else holds a copyright, and every label is
true. A `PieceSpec` describes a piece, `compose` turns it into notes, and
`musicgen_jax.nano.synth.render` turns the notes into sound. Everything is a pure function of the
spec and a numpy generator.

Two choices help the codec, which has no clock: if a convolutional decoder receives the same token
again and again, it can only repeat one frame. So all times are whole frames (`FRAME_RATE` per
second). And the pitches form a just scale whose frequencies are small multiples of fractions of the
frame rate, so a held note looks the same to the codec every one, two or three frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

FRAME_RATE = 25
"""Codec frames a second; every onset and every end of a note is a whole frame."""

LEADS = ("piano", "guitar", "organ", "strings", "flute", "trumpet", "music_box", "synth")
ACCOMPANIMENTS = ("piano", "guitar", "organ", "strings")
CHORDAL_LEADS = frozenset(LEADS) - {"flute", "trumpet"}
"""Leads that accompany themselves when nobody else does."""

TEMPOS = ("slow", "medium", "fast")
MODES = ("major", "minor")
FRAMES_PER_EIGHTH = {"slow": (12,), "medium": (8,), "fast": (5,)}
STYLE_METRES = {
    "waltz": ("3/4",),
    "march": ("4/4",),
    "lullaby": ("3/4", "6/8"),
    "ballad": ("4/4",),
    "jig": ("6/8",),
    "pop": ("4/4",),
    "folk": ("4/4",),
}
STYLE_TEMPOS = {
    "waltz": TEMPOS,
    "march": ("medium", "fast"),
    "lullaby": ("slow",),
    "ballad": ("slow", "medium"),
    "jig": ("fast",),
    "pop": ("medium", "fast"),
    "folk": TEMPOS,
}
STYLES = tuple(STYLE_METRES)
EIGHTHS_PER_BAR = {"3/4": 6, "4/4": 8, "6/8": 6}

# ------------------------------------------------------------------------------------ pitch

_G3 = Fraction(200)
_RATIOS = {  # semitones above G -> just ratio; D sharp is the third of the minor key's dominant
    0: Fraction(1),
    2: Fraction(9, 8),
    4: Fraction(5, 4),
    5: Fraction(4, 3),
    7: Fraction(3, 2),
    8: Fraction(25, 16),
    9: Fraction(5, 3),
    11: Fraction(15, 8),
}
_G3_MIDI = 55


def frequency(pitch: int) -> Fraction:
    """The frequency in Hz of a MIDI note number, in just G major with G3 = 200 Hz.

    Raises:
        ValueError: the pitch is outside the scale (G A B C D D# E F#).
    """
    octave, semitones = divmod(pitch - _G3_MIDI, 12)
    if semitones not in _RATIOS:
        raise ValueError(f"MIDI note {pitch} is not in the scale: use G A B C D D# E or F#")
    return _G3 * _RATIOS[semitones] * Fraction(2) ** octave


CHORDS = {  # pitch classes, root first; these triads are pure in this tuning
    "G": (7, 11, 2),
    "C": (0, 4, 7),
    "D": (2, 6, 9),
    "Em": (4, 7, 11),
    "Bm": (11, 2, 6),
    "B": (11, 3, 6),
}
# Other notes that a melody may rest on: sixths and ninths that are pure too.
_COLOURS = {"G": (9, 4), "C": (2,), "D": (11,), "Em": (6, 2), "Bm": (), "B": ()}
_SCALE = (0, 2, 4, 5, 7, 9, 11)  # semitones above G

# Four bars each. "open" ends on the dominant, "closed" on the dominant and the tonic.
_PROGRESSIONS = {
    "major": {
        "open": (("G", "C", "G", "D"), ("G", "Em", "C", "D"), ("G", "Bm", "C", "D"),
                 ("G", "D", "Em", "D"), ("G", "G", "C", "D")),
        "closed": (("G", "C", "D", "G"), ("G", "Em", "D", "G"), ("C", "G", "D", "G")),
        "contrast": (("Em", "Bm", "C", "D"), ("C", "G", "C", "D"), ("Em", "C", "G", "D"),
                     ("D", "G", "C", "D"), ("C", "D", "Em", "D")),
    },
    "minor": {
        "open": (("Em", "C", "G", "B"), ("Em", "D", "C", "B"), ("Em", "G", "C", "B"),
                 ("Em", "Em", "C", "B"), ("Em", "Bm", "C", "B")),
        "closed": (("Em", "C", "B", "Em"), ("Em", "G", "B", "Em"), ("C", "Em", "B", "Em")),
        "contrast": (("G", "D", "Em", "B"), ("C", "G", "Em", "B"), ("G", "Bm", "C", "B"),
                     ("C", "D", "G", "B")),
    },
}  # fmt: skip

# ------------------------------------------------------------------------------------- spec


@dataclass(frozen=True)
class PieceSpec:
    """Describes a piece: all attributes that a caption may mention.

    Attributes:
        lead: One of `LEADS`; plays the melody.
        accompaniment: One of `ACCOMPANIMENTS` other than the lead, or None. With None, a chordal
            lead accompanies itself, and a flute or trumpet plays alone.
        style: A key of `STYLE_METRES`.
        metre: "3/4", "4/4" or "6/8".
        tempo: "slow", "medium" or "fast".
        frames_per_eighth: Length of an eighth note in codec frames.
        mode: "major" (G major) or "minor" (E minor).
        bass: Whether a bass guitar plays.
        drums: Whether drums play.
    """

    lead: str
    accompaniment: str | None
    style: str
    metre: str
    tempo: str
    frames_per_eighth: int
    mode: str
    bass: bool
    drums: bool

    @property
    def bpm(self) -> float:
        """Quarter notes per minute, in every metre."""
        return 60 * FRAME_RATE / (2 * self.frames_per_eighth)

    @property
    def solo(self) -> bool:
        """Whether the lead plays alone."""
        return self.accompaniment is None and not self.bass and not self.drums


ATTRIBUTES: dict[str, tuple] = {
    "lead": LEADS,
    "accompaniment": (None, *ACCOMPANIMENTS),
    "style": STYLES,
    "metre": tuple(EIGHTHS_PER_BAR),
    "tempo": TEMPOS,
    "mode": MODES,
    "bass": (False, True),
    "drums": (False, True),
}
"""What a spec may say: the values of every field that is chosen, not derived."""


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """One of the choices."""
    return choices[int(rng.integers(len(choices)))]


def sample_spec(rng: np.random.Generator) -> PieceSpec:
    """Draws a spec. Leads, tempos and modes are uniform, styles nearly uniform."""
    lead, tempo, mode = pick(rng, LEADS), pick(rng, TEMPOS), pick(rng, MODES)
    # Styles with a single tempo count twice at that tempo, so no style is rare.
    styles = [s for s in STYLES if tempo in STYLE_TEMPOS[s]]
    styles += [s for s in styles if len(STYLE_TEMPOS[s]) == 1]
    style = pick(rng, styles)
    alone = 0.6 if lead in CHORDAL_LEADS else 0.35
    accompaniment = None
    if rng.random() >= alone:
        accompaniment = pick(rng, [a for a in ACCOMPANIMENTS if a != lead])
    band = accompaniment is not None
    return PieceSpec(
        lead=lead,
        accompaniment=accompaniment,
        style=style,
        metre=pick(rng, STYLE_METRES[style]),
        tempo=tempo,
        frames_per_eighth=pick(rng, FRAMES_PER_EIGHTH[tempo]),
        mode=mode,
        bass=style == "pop" or (band and bool(rng.random() < 0.25)),
        drums=style == "pop" or (style == "march" and bool(rng.random() < 0.4)),
    )


# ------------------------------------------------------------------------------------ notes


@dataclass(frozen=True)
class Note:
    """One note.

    Attributes:
        instrument: A lead, "bass", or "kick", "snare" or "hat".
        onset_frame: First frame.
        frames: Frames until its release; struck and plucked notes ring a little longer.
        pitch: MIDI note number (see `frequency`); 0 for drums.
        velocity: Loudness; a melody note on the downbeat has 1.
    """

    instrument: str
    onset_frame: int
    frames: int
    pitch: int
    velocity: float


# Rhythms of one bar in eighths. All styles have about the same number of notes per beat, so a
# faster piece always has more notes per second.
_RHYTHMS = {
    ("waltz", "3/4"): ((2, 2, 2), (4, 2), (3, 1, 2), (2, 2, 1, 1), (2, 1, 1, 2)),
    ("lullaby", "3/4"): ((4, 2), (2, 2, 2), (4, 1, 1), (3, 1, 2)),
    ("lullaby", "6/8"): ((2, 1, 2, 1), (3, 2, 1), (2, 1, 3), (3, 3)),
    ("march", "4/4"): ((3, 1, 2, 2), (2, 2, 3, 1), (2, 1, 1, 2, 2), (3, 1, 3, 1)),
    ("ballad", "4/4"): ((2, 2, 4), (4, 2, 2), (3, 1, 4), (2, 2, 2, 2), (3, 1, 2, 2)),
    ("jig", "6/8"): ((1, 1, 1, 1, 1, 1), (2, 1, 2, 1), (2, 1, 1, 1, 1), (1, 1, 1, 2, 1)),
    ("pop", "4/4"): ((3, 3, 2), (2, 2, 1, 2, 1), (2, 1, 1, 2, 2), (3, 1, 2, 2)),
    ("folk", "4/4"): ((2, 1, 1, 2, 2), (2, 2, 2, 1, 1), (1, 1, 2, 2, 2), (2, 2, 1, 1, 2)),
}
_CADENCES = {"3/4": (4, 2), "4/4": (2, 2, 4), "6/8": (2, 1, 3)}
_FINALS = {"3/4": (6,), "4/4": (2, 6), "6/8": (3, 3)}
_LONE_FINALS = {"3/4": (2, 4), "4/4": (2, 2, 4), "6/8": (2, 1, 3)}

# Accompaniments: (onset, length, voices) in eighths. R is the root, F the fifth below the chord, U
# the two upper notes together, 0..3 single notes of the chord in ascending order.
_PATTERNS = {
    ("waltz", "3/4"): ((0, 2, "R"), (2, 1.5, "U"), (4, 1.5, "U")),
    ("lullaby", "3/4"): ((0, 3, "R"), (1, 2, "0"), (2, 2, "1"), (3, 2, "2"), (4, 2, "1"),
                         (5, 1, "0")),
    ("lullaby", "6/8"): ((0, 3, "R"), (1, 2, "0"), (2, 2, "1"), (3, 2, "2"), (4, 2, "1"),
                         (5, 1, "0")),
    ("march", "4/4"): ((0, 1.5, "R"), (2, 1, "U"), (4, 1.5, "F"), (6, 1, "U")),
    ("ballad", "4/4"): ((0, 4, "R"), (1, 2, "0"), (2, 2, "1"), (3, 2, "2"), (4, 2, "3"),
                        (5, 2, "2"), (6, 2, "1"), (7, 1, "0")),
    ("jig", "6/8"): ((0, 2, "R"), (2, 1, "U"), (3, 2, "F"), (5, 1, "U")),
    ("pop", "4/4"): ((0, 2, "U"), (2, 2, "U"), (4, 2, "U"), (6, 2, "U")),
    ("folk", "4/4"): ((0, 2, "R"), (2, 1, "U"), (3, 1, "U"), (4, 2, "F"), (6, 1, "U"),
                      (7, 1, "U")),
}  # fmt: skip
_DRUMS = {  # onsets in eighths
    "pop": {"kick": (0, 4), "snare": (2, 6), "hat": (0, 1, 2, 3, 4, 5, 6, 7)},
    "march": {"kick": (0, 4), "snare": (0, 2, 3, 4, 6, 7)},
}
_DRUM_VELOCITY = {"kick": 0.9, "snare": 0.55, "hat": 0.3}

# Lowest melody note; the range of a tune is an octave and a half above it.
_MELODY_LOW = {"flute": 74, "music_box": 79, "trumpet": 64, "guitar": 64}
_SUSTAINED = frozenset({"organ", "strings", "flute", "trumpet", "synth"})


def _raise_to(pitch_class: int, low: int) -> int:
    """The lowest pitch of a pitch class at or above `low`."""
    return low + (pitch_class - low) % 12


def _step_pitch(step: int, chord: str) -> int:
    """The MIDI pitch of a scale step (0 is G3); over B major, D is sharp."""
    octave, degree = divmod(step, 7)
    pitch = _G3_MIDI + 12 * octave + _SCALE[degree]
    return pitch + 1 if chord == "B" and pitch % 12 == 2 else pitch


def _nearest(
    step: int, chord: str, classes: Sequence[int], low: int, avoid: int | None = None
) -> int:
    """The scale step nearest to `step` in range, of an allowed pitch class and not `avoid`."""
    fits = [
        s
        for s in range(step - 14, step + 15)
        if low <= (p := _step_pitch(s, chord)) <= low + 18 and p % 12 in classes and s != avoid
    ]
    return min(fits, key=lambda s: (abs(s - step), s))


@dataclass(frozen=True)
class _Motif:
    """The rhythm of a bar (in eighths) and the scale steps between its notes."""

    rhythm: tuple[int, ...]
    intervals: tuple[int, ...]


def _motif(rng: np.random.Generator, rhythm: tuple[int, ...]) -> _Motif:
    """Draws a contour that mostly moves by step and keeps its direction for a while."""
    direction = 1 if rng.random() < 0.5 else -1
    intervals = []
    for _ in rhythm:
        size = int(rng.choice([0, 1, 2, 3], p=[0.12, 0.6, 0.2, 0.08]))
        intervals.append(direction * size)
        if rng.random() < 0.35:
            direction = -direction
    return _Motif(rhythm, tuple(intervals))


class _Melody:
    """Turns motifs into notes over chords, for one lead."""

    def __init__(self, spec: PieceSpec, rng: np.random.Generator):
        self.low = _MELODY_LOW.get(spec.lead, 67)
        self.beat = 3 if spec.metre == "6/8" else 2
        alone = spec.solo and spec.lead not in CHORDAL_LEADS
        rhythms = _RHYTHMS[spec.style, spec.metre]
        if alone:  # no other instrument marks the beat
            rhythms = tuple(self._every_beat(r) for r in rhythms)
        order = rng.permutation(len(rhythms))
        first, second, third = (rhythms[int(i)] for i in order[:3])
        self.theme = (_motif(rng, first), _motif(rng, second))
        self.contrast = _motif(rng, third)
        self.half = _motif(rng, _CADENCES[spec.metre])
        finals = _LONE_FINALS if alone else _FINALS
        self.final = _motif(rng, finals[spec.metre])
        self.sequence = bool(rng.random() < 0.5)  # theme, theme, answer or theme, answer, theme
        self.home = {"major": 7, "minor": 4}[spec.mode]
        self.centre = round((self.low + 8 - _G3_MIDI) * 7 / 12)

    def _every_beat(self, rhythm: tuple[int, ...]) -> tuple[int, ...]:
        """Splits notes of several beats into single beats."""
        beats = []
        for length in rhythm:
            whole = length % self.beat == 0
            beats += [self.beat] * (length // self.beat) if whole else [length]
        return tuple(beats)

    def phrase(self, chords: Sequence[str], kind: str) -> list[list[tuple[int, int, int]]]:
        """Four bars of notes (onset, length, pitch); times are in eighths."""
        a, b = self.theme
        c = self.contrast
        motifs = {
            "contrast": [c, c, a, self.half],
            "open": [a, a, b, self.half] if self.sequence else [a, b, a, self.half],
            "closed": [a, a, b, self.final] if self.sequence else [a, b, a, self.final],
        }[kind]
        step = self.centre + (3 if kind == "contrast" else 0)
        bars = []
        for index, (motif, chord) in enumerate(zip(motifs, chords, strict=True)):
            last = kind == "closed" and index == 3
            bar, step = self._bar(motif, chord, step, last)
            bars.append(bar)
            # Between bars, move back towards the middle: otherwise contours drift.
            step += int(np.sign(self.centre - step)) if abs(self.centre - step) > 4 else 0
        return bars

    def _bar(self, motif: _Motif, chord: str, step: int, last: bool):
        triad = CHORDS[chord]
        bar, onset = [], 0
        for i, (length, interval) in enumerate(zip(motif.rhythm, motif.intervals, strict=True)):
            # A moving contour must not stall when it snaps to the chord.
            avoid = step if i and interval else None
            step += interval if i else 0
            classes = triad
            if last and i == len(motif.rhythm) - 1:
                classes, avoid = (self.home,), None
            elif onset % (2 * self.beat) and i:
                classes = triad + _COLOURS[chord]
                if length == 1 and onset % self.beat:  # passing note: any step of the scale
                    classes = tuple(_step_pitch(s, chord) % 12 for s in range(7))
            step = _nearest(step, chord, classes, self.low, avoid)
            bar.append((onset, length, _step_pitch(step, chord)))
            onset += length
        return bar, step


def _accompany(spec: PieceSpec, instrument: str, chord: str, start: int, loudness: float):
    """One bar of accompaniment notes from frame `start`."""
    up = 24 if instrument == "music_box" else 12 if instrument == "synth" else 0
    triad = CHORDS[chord]
    root = _raise_to(triad[0], 43 + up)
    fifth = _raise_to(triad[2], 43 + up)
    close = sorted(_raise_to(pc, 55 + up) for pc in triad)
    upper = close[1:] if close[0] % 12 == triad[0] else [p for p in close if p % 12 != triad[0]]
    ladder = [*close, close[0] + 12]
    voices = {"R": [root], "F": [fifth], "U": upper} | {str(i): [p] for i, p in enumerate(ladder)}
    n = spec.frames_per_eighth
    for onset, length, voice in _PATTERNS[spec.style, spec.metre]:
        frames = max(2, round(length * n) - (1 if instrument in _SUSTAINED else 0))
        pitches = voices[voice]
        velocity = loudness * (1.15 if voice in "RF" else 0.8 if len(pitches) > 1 else 1.0)
        for pitch in pitches:
            yield Note(instrument, start + onset * n, frames, pitch, velocity)


def _rhythm_section(spec: PieceSpec, chord: str, start: int):
    """One bar of bass and drums from frame `start`."""
    n = spec.frames_per_eighth
    eighths = EIGHTHS_PER_BAR[spec.metre]
    if spec.bass:
        root = _raise_to(CHORDS[chord][0], 36)
        beat = {"3/4": 6, "6/8": 3, "4/4": 2 if spec.style == "pop" else 4}[spec.metre]
        for onset in range(0, eighths, beat):
            yield Note("bass", start + onset * n, min(beat, 4) * n - 1, root, 0.7)
    if spec.drums:
        for drum, onsets in _DRUMS[spec.style].items():
            for onset in onsets:
                velocity = _DRUM_VELOCITY[drum] * (1.0 if onset % 2 == 0 else 0.7)
                yield Note(drum, start + onset * n, n, 0, velocity)


_FORM = ("open", "closed", "contrast", "closed")  # phrases of a tune: A A' B A'
BARS = 4 * len(_FORM)
"""Bars of a tune, after which it starts over."""


def draw_chords(spec: PieceSpec, rng: np.random.Generator) -> dict[str, tuple[str, ...]]:
    """Draws the four chord names of each kind of phrase, as `compose` does first."""
    progressions = _PROGRESSIONS[spec.mode]
    return {kind: pick(rng, progressions[kind]) for kind in ("open", "closed", "contrast")}


def chords_by_bar(chords: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The chord name of each of the `BARS` bars of a tune."""
    return tuple(chord for kind in _FORM for chord in chords[kind])


def compose(spec: PieceSpec, rng: np.random.Generator, num_frames: int) -> list[Note]:
    """Composes a tune in the form A A' B A' and repeats it as long as needed.

    Args:
        spec: Describes the piece.
        rng: Source of the tune; the same state gives the same tune.
        num_frames: Length in frames. The music starts at frame 0 with a downbeat and continues to
            the end.

    Returns:
        The notes with an onset before `num_frames`, in order of onset.
    """
    chords = draw_chords(spec, rng)
    melody = _Melody(spec, rng)
    phrases = {kind: melody.phrase(chords[kind], kind) for kind in chords}
    n = spec.frames_per_eighth
    bar_frames = EIGHTHS_PER_BAR[spec.metre] * n
    accompanist = spec.accompaniment
    if accompanist is None and spec.lead in CHORDAL_LEADS:
        accompanist = spec.lead
    loudness = 0.42 if accompanist == spec.lead else 0.34
    if accompanist in _SUSTAINED and spec.lead not in _SUSTAINED:
        loudness *= 0.7  # held chords would mask a melody that decays
    notes = []
    for bar, start in enumerate(range(0, num_frames, bar_frames)):
        kind = _FORM[bar // 4 % len(_FORM)]
        chord = chords[kind][bar % 4]
        for onset, length, pitch in phrases[kind][bar % 4]:
            # Oscillators never restart, so a repeated note has an onset only after a gap.
            frames = length * n - (1 if spec.lead in _SUSTAINED else 0)
            velocity = 1.0 if onset == 0 else 0.9 if onset % melody.beat == 0 else 0.8
            notes.append(Note(spec.lead, start + onset * n, frames, pitch, velocity))
        if accompanist is not None:
            notes += _accompany(spec, accompanist, chord, start, loudness)
        notes += _rhythm_section(spec, chord, start)
    notes = [note for note in notes if note.onset_frame < num_frames]
    return sorted(notes, key=lambda note: (note.onset_frame, note.instrument, note.pitch))
