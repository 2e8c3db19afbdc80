"""Melodies in other keys and tunings, for a model that plays in one key only."""

import dataclasses
import logging

import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.conditioning.chroma import PITCHES
from musicgen_jax.conditioning.key import find_move, find_tuning, loudest_classes
from musicgen_jax.conditioning.melody import melodies_of
from tests.helpers import shallow

RATE, GRID = 16000, (2560, 1920)
G = 7
MAJOR = [0, 2, 4, 5, 7, 9, 11, 12, 7, 4, 0, 7, 5, 4, 2, 0]  # semitones above the tonic
MINOR = [0, 2, 3, 5, 7, 8, 7, 3, 0, 2, 3, 7, 5, 3, 2, 0]


def played(steps, tonic=67, cents=0.0, seconds=0.3, rate=RATE):
    """Tones with overtones that die away, like a plucked string: float32 [W]."""
    time = np.arange(int(seconds * rate)) / rate
    tones = []
    for step in steps:
        hertz = 440 * 2 ** ((tonic + step - 69 + cents / 100) / 12)
        tone = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in (1, 2, 3, 4))
        tones.append(0.3 * tone * np.exp(-2 * time))
    return np.concatenate(tones).astype(np.float32)


@pytest.mark.parametrize(
    ("tonic", "heard", "semitones"),
    [
        (62, "D", 5),
        (60, "C", -5),
        (64, "E", 3),
        (69, "A", -2),
        (65, "F", 2),
        (67, "G", 0),
        (70, "B flat", -3),
    ],
)
def test_a_tune_in_any_major_key_is_moved_to_g(tonic, heard, semitones):
    move = find_move(played(MAJOR, tonic), RATE, G, *GRID)
    assert str(move) == f"heard in {heard} major, played in G major"
    assert move.semitones == semitones


@pytest.mark.parametrize(("tonic", "heard"), [(69, "A"), (62, "D"), (64, "E"), (66, "F sharp")])
def test_a_tune_in_a_minor_key_is_moved_to_e_minor(tonic, heard):
    move = find_move(played(MINOR, tonic), RATE, G, *GRID)
    assert str(move) == f"heard in {heard} minor, played in E minor"


@pytest.mark.parametrize("cents", [-45, -20, 0, 15, 40])
def test_the_tuning_is_heard_and_does_not_change_the_key(cents):
    audio = played(MAJOR, 62, cents)
    assert find_tuning(audio, RATE) == pytest.approx(cents / 100, abs=0.03)
    assert find_move(audio, RATE, G, *GRID).semitones == 5


@pytest.mark.parametrize("audio", [np.zeros(1), np.zeros(30_000)], ids=["a sample", "silence"])
def test_silence_stays(audio):
    move = find_move(audio.astype(np.float32), RATE, G, *GRID)
    assert (move.semitones, move.tuning) == (0, 0.0)


def test_noise_has_no_tuning():
    noise = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    assert find_tuning(noise, RATE) == 0


def melody_config(tonic):
    lm = dataclasses.replace(
        shallow.MELODY.lm, chroma_window=640, chroma_hop=480, chroma_tonic=tonic
    )
    return dataclasses.replace(shallow.MELODY, lm=lm)


def heard(config, audio, rate):
    melodies = melodies_of(config, audio[None], rate, separate=False, duration=2.0)
    return melodies, melodies.chroma_at(0.0)[0][0].argmax(axis=1)


def test_a_model_of_one_key_is_given_the_moved_melody_and_says_so_once(caplog):
    audio = played(MAJOR, 62, cents=40, rate=4000, seconds=0.5)
    with caplog.at_level(logging.WARNING, "musicgen_jax"):
        melodies, moved = heard(melody_config(G), audio, 4000)
        melodies.chroma_at(0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "melody: heard in D major, played in G major"
    ]
    assert melodies.moves[0].semitones == 5
    notes = [moved[round((i + 0.4) * 0.5 * 4000 / 480)] for i in range(8)]
    assert [PITCHES[note] for note in notes] == ["G", "A", "B", "C", "D", "E", "F#", "G"]


def test_a_melody_for_all_clips_is_prepared_once_in_slots_too(caplog, tmp_path):
    model = testing.random_model(melody_config(G))
    audio = played(MAJOR, 62, rate=4000, seconds=0.5)
    settings = {"separate": False, "duration": 0.2, "slots": 2, "checkpoint": tmp_path / "x"}
    with caplog.at_level(logging.WARNING, "musicgen_jax"):
        model.generate_with_chroma(["a", "b", "c"], audio[None], 4000, **settings)
    assert [record.getMessage() for record in caplog.records] == [
        "melody: heard in D major, played in G major"
    ]


def test_other_models_are_given_the_melody_as_it_is(caplog):
    audio = played(MAJOR, 62, rate=4000, seconds=0.5)
    melodies, classes = heard(melody_config(None), audio, 4000)
    assert melodies.moves == [None]
    assert PITCHES[classes[2]] == "D"
    assert not caplog.records


def test_numpy_hears_what_the_model_hears():
    config = melody_config(None)
    audio = played(MAJOR, 62, rate=4000, seconds=0.7)
    rows = heard(config, audio, 4000)[1]
    ours, energy = loudest_classes(audio, 4000, 640, 480)
    np.testing.assert_array_equal(ours[: len(rows)], rows[: len(ours)])
    assert energy.shape == ours.shape
