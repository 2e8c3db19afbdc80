"""The music and the words that the bundled model is trained on."""

import dataclasses
import re
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.nano import captions, composer, places, synth
from musicgen_jax.nano.composer import (
    CHORDAL_LEADS,
    CHORDS,
    EIGHTHS_PER_BAR,
    FRAME_RATE,
    LEADS,
    MODES,
    TEMPOS,
    Note,
    PieceSpec,
    compose,
    frequency,
    sample_spec,
)
from musicgen_jax.nano.synth import HOP, SAMPLE_RATE, period_frames, render
from tests.helpers.imports import loaded_by

DRUMS = {"kick", "snare", "hat"}
SCALE = [p for p in range(43, 96) if p % 12 in (7, 9, 11, 0, 2, 3, 4, 6)]
seeds = st.integers(0, 2**32 - 1)
small = settings(max_examples=40, deadline=None)


def piece(seed: int, frames: int = 300) -> tuple[PieceSpec, list[Note]]:
    rng = np.random.default_rng(seed)
    spec = sample_spec(rng)
    return spec, compose(spec, rng, frames)


def solo(lead: str, style: str = "waltz", **changes) -> PieceSpec:
    values = {
        "lead": lead,
        "accompaniment": None,
        "style": style,
        "metre": composer.STYLE_METRES[style][0],
        "tempo": "slow",
        "frames_per_eighth": 10,
        "mode": "major",
        "bass": False,
        "drums": False,
    }
    return PieceSpec(**(values | changes))


# ------------------------------------------------------------------------------------ tuning


def test_the_tuning_is_tied_to_the_frame_rate():
    assert frequency(55) == 200
    assert frequency(63) == Fraction(625, 2)
    assert frequency(69) == 450
    for pitch in SCALE:
        cycles = frequency(pitch) / FRAME_RATE
        limit = 4 if pitch % 12 == 3 else 3
        assert cycles.denominator <= limit, pitch


@pytest.mark.parametrize(("name", "classes"), CHORDS.items())
def test_every_chord_is_pure(name, classes):
    low = 43 + (classes[0] - 43) % 12
    pitches = [low + (c - classes[0]) % 12 for c in classes]
    ratios = [frequency(p) / frequency(pitches[0]) for p in pitches]
    third = Fraction(6, 5) if name.endswith("m") else Fraction(5, 4)
    assert ratios == [1, third, Fraction(3, 2)]


def test_a_pitch_outside_the_scale_is_refused():
    with pytest.raises(ValueError, match="56"):
        frequency(56)


# ------------------------------------------------------------------------------------- specs


def test_specs_are_balanced():
    rng = np.random.default_rng(0)
    specs = [sample_spec(rng) for _ in range(6_000)]
    for attribute, values in (("lead", LEADS), ("tempo", TEMPOS), ("mode", MODES)):
        counts = Counter(getattr(s, attribute) for s in specs)
        assert set(counts) == set(values)
        assert max(counts.values()) < 1.25 * min(counts.values()), attribute
    styles = Counter(s.style for s in specs)
    assert set(styles) == set(composer.STYLES)
    assert min(styles.values()) > len(specs) * 0.08


@small
@given(seeds)
def test_specs_are_consistent(seed):
    spec, _ = piece(seed, 1)
    assert spec.metre in composer.STYLE_METRES[spec.style]
    assert spec.tempo in composer.STYLE_TEMPOS[spec.style]
    assert spec.accompaniment != spec.lead
    assert spec.bpm == pytest.approx(750 / spec.frames_per_eighth)
    low, high = {"slow": (60, 76), "medium": (80, 110), "fast": (120, 151)}[spec.tempo]
    assert low < spec.bpm < high


# --------------------------------------------------------------------------------- composing


@small
@given(seeds)
def test_pieces_are_well_formed(seed):
    spec, notes = piece(seed)
    n = spec.frames_per_eighth
    lead = [note for note in notes if note.instrument == spec.lead]
    assert min(note.onset_frame for note in lead) == 0
    assert all(0 <= note.onset_frame < 300 and note.frames > 0 for note in notes)
    assert all(note.onset_frame % n == 0 for note in notes)
    scale = {pc for chord in CHORDS.values() for pc in chord}
    assert all(note.pitch % 12 in scale for note in notes if note.instrument not in DRUMS)
    sounding = np.zeros(300, int)
    for note in notes:
        if note.instrument not in DRUMS:
            sounding[note.onset_frame : note.onset_frame + note.frames] += 1
    assert sounding.max() <= 5
    # The melody is the loudest thing that has a pitch.
    others = [x.velocity for x in notes if x.instrument not in DRUMS | {spec.lead}]
    assert max([0.0, *others]) < min(x.velocity for x in lead if x.velocity >= 0.8)
    parts = {x.instrument for x in notes} - DRUMS
    assert parts == {spec.lead, spec.accompaniment, "bass" if spec.bass else None} - {None}
    assert bool(DRUMS & {x.instrument for x in notes}) == spec.drums


@small
@given(seeds)
def test_every_beat_has_an_onset(seed):
    spec, notes = piece(seed)
    beat = spec.frames_per_eighth * (3 if spec.metre == "6/8" else 2)
    bar = EIGHTHS_PER_BAR[spec.metre] * spec.frames_per_eighth
    onsets = {note.onset_frame for note in notes}
    missing = [t for t in range(0, 300, beat) if t not in onsets]
    if not spec.solo or spec.lead in CHORDAL_LEADS:
        assert not missing
    else:  # a single line may dot a rhythm or rest on a final note, never for two beats
        assert not {t + beat for t in missing} & set(missing)
    assert all(t in onsets for t in range(0, 300, bar))


@small
@given(seeds)
def test_a_longer_piece_begins_like_a_shorter_one(seed):
    rng = np.random.default_rng(seed)
    spec = sample_spec(rng)
    short = compose(spec, np.random.default_rng(seed), 150)
    long = compose(spec, np.random.default_rng(seed), 400)
    assert short == [note for note in long if note.onset_frame < 150]


def test_seeds_decide():
    assert piece(3) == piece(3)
    tunes = {tuple(compose(solo("piano"), np.random.default_rng(s), 500)) for s in range(20)}
    assert len(tunes) == 20


@pytest.mark.parametrize("mode", MODES)
def test_phrases_end_on_the_tonic(mode):
    spec = solo("flute", mode=mode)
    bar = 6 * spec.frames_per_eighth
    for seed in range(10):
        notes = compose(spec, np.random.default_rng(seed), 16 * bar)
        last = max((n for n in notes if n.onset_frame < 8 * bar), key=lambda n: n.onset_frame)
        assert last.pitch % 12 == {"major": 7, "minor": 4}[mode]


def test_faster_means_more_onsets_a_second():
    rng = np.random.default_rng(1)
    rates = {tempo: [] for tempo in TEMPOS}
    for _ in range(400):
        spec = sample_spec(rng)
        notes = compose(spec, rng, 500)
        rates[spec.tempo].append(len({note.onset_frame for note in notes}) / 20)
    slow, medium, fast = (np.array(rates[tempo]) for tempo in TEMPOS)
    assert slow.mean() * 1.2 < medium.mean() < fast.mean() / 1.2
    assert np.percentile(slow, 90) < np.percentile(fast, 10)


# ------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("instrument", sorted(synth._VOICES))
@pytest.mark.parametrize("pitch", [43, 60, 63, 66, 74])
def test_tables_repeat_without_a_seam(instrument, pitch):
    table = synth._tables(instrument, pitch).sum(0)
    spectrum = np.abs(np.fft.rfft(table))
    assert len(table) == period_frames(instrument, pitch) * HOP
    # A seam would leak energy into all bins: here only harmonics and vibrato's bins hold any.
    assert np.median(spectrum) < 1e-4 * spectrum.max()


def test_a_held_chord_repeats_in_whole_frames():
    audio = render([Note("organ", 2, 40, pitch, 0.8) for pitch in (60, 64, 67, 72)], 40)
    frames = audio.reshape(40, HOP)
    assert not frames[:2].any()
    for t in range(7, 30):
        np.testing.assert_array_equal(frames[t], frames[t + 6])
    assert np.abs(frames[7] - frames[8]).max() > 1e-3  # not silence, not one frame over and over


def test_oscillators_do_not_restart_with_the_note():
    early = render([Note("synth", 0, 40, 72, 1.0)], 40)
    late = render([Note("synth", 7, 33, 72, 1.0)], 40)
    assert not late[: 7 * HOP].any()
    np.testing.assert_array_equal(early[10 * HOP :], late[10 * HOP :])


@pytest.mark.parametrize("lead", LEADS)
def test_onsets_lie_on_frames_and_are_heard(lead):
    pitch = 79
    audio = render([Note(lead, 0, 4, pitch, 1.0), Note(lead, 10, 4, pitch, 1.0)], 20)
    energy = (audio.reshape(20, HOP) ** 2).sum(1)
    before, after = energy[9], energy[10]
    assert after > 10 * before
    assert audio[10 * HOP : 10 * HOP + 800].any()


@pytest.mark.parametrize("lead", LEADS)
def test_the_pitch_is_heard(lead):
    pitch = 79
    audio = render([Note(lead, 0, 50, pitch, 1.0)], 50)
    spectrum = np.abs(np.fft.rfft(audio[HOP:] * np.hanning(len(audio) - HOP)))
    hertz = np.fft.rfftfreq(len(audio) - HOP, 1 / SAMPLE_RATE)
    near = np.abs(hertz - float(frequency(pitch))) < 12
    below = hertz < float(frequency(pitch)) - 30
    assert spectrum[near].max() > 0.15 * spectrum.max()
    assert spectrum[below].max() < 0.02 * spectrum.max()


def test_levels_are_bounded_and_steady():
    started, seconds, levels = time.perf_counter(), 0, []
    for seed in range(40):
        spec, notes = piece(seed, 250)
        audio = render(notes, 250)
        seconds += 10
        assert audio.dtype == np.float32
        assert audio.shape == (250 * HOP,)
        assert np.abs(audio).max() < 0.9, spec
        levels.append(np.sqrt(np.mean(audio**2)))
        halves = [np.sqrt(np.mean(half**2)) for half in np.split(audio, 2)]
        assert 0.5 < halves[0] / halves[1] < 2, spec
    print(f"{seconds / (time.perf_counter() - started):.0f} seconds of audio a second")
    assert min(levels) > 0.05
    assert max(levels) < 0.17
    assert 0.08 < np.mean(levels) < 0.13


def test_the_start_does_not_depend_on_the_length():
    rng = np.random.default_rng(5)
    spec = sample_spec(rng)
    notes = compose(spec, rng, 200)
    np.testing.assert_array_equal(render(notes, 200)[: 120 * HOP], render(notes, 120))


def test_drums_never_vary():
    audio = render([Note("snare", 0, 4, 0, 0.5), Note("snare", 10, 4, 0, 0.5)], 20)
    np.testing.assert_array_equal(audio[: 10 * HOP], audio[10 * HOP :])
    with pytest.raises(ValueError, match="gong"):
        render([Note("gong", 0, 4, 0, 0.5)], 4)


# ---------------------------------------------------------------------------------- captions


@pytest.fixture(scope="module")
def corpus() -> list[tuple[PieceSpec, str]]:
    rng = np.random.default_rng(0)
    return [(spec := sample_spec(rng), captions.caption(spec, rng)) for _ in range(4_000)]


def test_captions_vary(corpus):
    texts = [text for _, text in corpus]
    assert len(set(texts)) > 0.98 * len(texts)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 1
    assert max(lengths) < 40
    assert all(text == " ".join(text.split()) and ",," not in text for text in texts)
    assert any(text.isupper() for text in texts)
    assert not any(re.search(r"\ba (8-bit|organ|upright|allegro|irish)\b", t) for t in texts)


def test_captions_name_what_they_should(corpus):
    def share(named):
        return np.mean([named(spec, text.lower()) for spec, text in corpus])

    def tempo(spec, text):
        words = captions.TEMPO_WORDS[spec.tempo] + captions.TEMPO_MOODS[spec.tempo]
        words += captions.TEMPO_PHRASES[spec.tempo] + ("bpm", "beats per minute")
        words += captions.BOTH_MOODS[spec.tempo, spec.mode]
        return any(word in text for word in words)

    assert share(lambda s, t: any(w in t for w in captions.INSTRUMENTS[s.lead])) > 0.9
    assert share(tempo) > 0.8
    assert 0.5 < share(lambda s, t: any(w in t for w in captions.MODE_MOODS[s.mode])) < 0.9


def test_captions_do_not_lie(corpus):
    for spec, text in corpus:
        text = text.lower()
        if match := re.search(r"(\d+) (?:bpm|beats)|tempo (\d+)(?![\ds/-])", text):
            assert abs(int(match[1] or match[2]) - spec.bpm) <= 5
        if re.search(r"\bsolo\b", text):
            assert spec.solo
        for metre in composer.EIGHTHS_PER_BAR:
            if metre in text:
                assert spec.metre == metre
        if re.search(r"\bdrums?\b", text):
            assert spec.drums


def test_captions_follow_the_seed():
    spec = solo("piano")
    first = captions.caption(spec, np.random.default_rng(9))
    assert first == captions.caption(spec, np.random.default_rng(9))
    assert first != captions.caption(spec, np.random.default_rng(10))


def test_a_calm_waltz_for_solo_piano_is_natural():
    rng = np.random.default_rng(0)
    texts = {captions.caption(solo("piano"), rng).lower().strip(".") for _ in range(6_000)}
    assert "a calm waltz for solo piano" in texts


def test_full_captions_name_everything():
    rng = np.random.default_rng(2)
    for _ in range(200):
        spec = sample_spec(rng)
        text = captions.full_caption(spec)
        assert captions.INSTRUMENTS[spec.lead][0] in text
        assert captions.NOUNS[spec.style][0] in text
        assert spec.metre in text
        assert ("drums" in text) == spec.drums
        assert ("bass" in text) == spec.bass
        assert {"slow": "slow", "medium": "mid-tempo", "fast": "fast"}[spec.tempo] in text
        assert {"major": "happy", "minor": "sad"}[spec.mode] in text
        if spec.accompaniment:
            assert captions.INSTRUMENTS[spec.accompaniment][0] in text
    assert captions.full_caption(solo("piano")) == "a slow happy waltz for solo piano in 3/4"


def test_held_out_phrasings_are_held_out(corpus):
    held_out = {
        fragment.strip().lower()
        for template in captions.HELD_OUT
        for fragment in re.split(r"\{[a-z_]+\}", template)
        if len(re.findall(r"[a-z]+", fragment)) > 1
    }
    assert len(held_out) >= len(captions.HELD_OUT)
    for _, text in corpus:
        assert not any(fragment in text.lower() for fragment in held_out), text
    rng = np.random.default_rng(3)
    for _ in range(100):
        spec = sample_spec(rng)
        text = captions.held_out_caption(spec, rng)
        assert "{" not in text
        assert any(name in text for name in captions.INSTRUMENTS[spec.lead])
        assert captions.NOUNS[spec.style][0] in text


def test_places_are_those_of_the_notes():
    """Where the bass plays there is a beat, and it plays the root of the chord."""
    eighths, chords = dict.fromkeys(range(places.CLASSES[0]), 0), set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        spec = dataclasses.replace(composer.sample_spec(rng), bass=True)
        own = np.random.default_rng(seed + 1000)
        notes = composer.compose(spec, np.random.default_rng(seed + 1000), 400)
        labels = places.places(spec, composer.draw_chords(spec, own), 100, 300)
        assert (labels < np.array(places.CLASSES)[:, None]).all()
        for note in notes:
            if note.instrument == "bass" and note.onset_frame >= 100:
                eighth, frame, chord, bar, lead, style = labels[:, note.onset_frame - 100]
                eighths[int(eighth)] += 1
                assert frame == labels[1].min()
                chord = tuple(composer.CHORDS)[chord]
                assert note.pitch % 12 == composer.CHORDS[chord][0]
                chords.add(chord)
                eighths_before = note.onset_frame // spec.frames_per_eighth
                assert bar == eighths_before // composer.EIGHTHS_PER_BAR[spec.metre] % 16
                assert composer.LEADS[lead] == spec.lead
                assert composer.STYLES[style] == spec.style
    firsts = [eighths[i] for i in (0, 6, 14)]
    assert min(firsts) > 0
    assert eighths[1] == eighths[7] == eighths[15] == 0
    assert len(chords) > 4


def test_music_is_rendered_without_jax():
    assert not loaded_by("import musicgen_jax.nano.render") & {"flax", "jax", "optax", "torch"}
