"""The pieces that a melody model learns from, and the one command that makes it, small."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile

from musicgen_jax import MusicGen
from musicgen_jax.commands import cli
from musicgen_jax.conditioning.chroma import melody_chroma
from musicgen_jax.nano import build_melody, captions, composer, melodies, synth
from musicgen_jax.nano.build_melody import melody_config
from musicgen_jax.nano.weights import language_model, mean_of
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.hub import find_model

FRAMES = 250
CONFIG = melody_config(checkpoint.load_config(find_model("nano")))


def in_the_tune(spec, notes):
    """The pitch class of the tune at each chroma frame; -1 where it pauses."""
    tune = np.full(FRAMES + 1, -1)
    for note in notes:
        if melodies.is_melody(spec, note):
            tune[note.onset_frame : note.onset_frame + note.frames + 1] = note.pitch % 12
    return tune[: FRAMES + 1 : build_melody.STRIDE]


def test_an_excerpt_begins_with_a_phrase_and_is_full_of_notes():
    starts = set()
    for seed in range(12):
        spec, notes = melodies.excerpt(seed, FRAMES)
        onsets = [note.onset_frame for note in notes if melodies.is_melody(spec, note)]
        assert onsets[0] == 0
        assert FRAMES - max(onsets) <= 12 * 8
        starts.add(tuple(note.pitch for note in notes[:6]))
    assert len(starts) == 12


def test_another_instrument_plays_the_same_tune():
    spec, notes = melodies.excerpt(3, FRAMES)
    alone = melodies.played_on(spec, notes, "flute", octaves=1)
    tune = [note for note in notes if melodies.is_melody(spec, note)]
    assert [note.instrument for note in alone] == ["flute"] * len(tune)
    for ours, theirs in zip(alone, tune, strict=True):
        assert (ours.onset_frame, ours.pitch) == (theirs.onset_frame, theirs.pitch + 12)


def test_a_band_is_kept_on_its_new_instrument():
    for seed in range(40):
        spec, notes = melodies.excerpt(seed, FRAMES)
        if spec.drums and spec.bass:
            break
    with_band = melodies.played_on(spec, notes, "trumpet", accompaniment="organ", drums=True)
    assert len(with_band) == len(notes)
    assert {note.instrument for note in with_band if note.pitch} == {"trumpet", "organ", "bass"}
    without = melodies.played_on(spec, notes, "trumpet", accompaniment="organ")
    assert all(note.pitch for note in without)


def test_the_tune_is_heard_whoever_plays_it():
    """Out of tune and below other instruments too; a wrong tune agrees in one frame of seven."""
    right, wrong, last = [], [], None
    for seed in range(16):
        spec, notes = melodies.excerpt(seed, FRAMES)
        heard = melodies.rendering(spec, notes, np.random.default_rng(seed), CONFIG)
        tune = in_the_tune(spec, notes)
        right.append((heard == tune).mean())
        if last is not None:
            wrong.append((heard == last).mean())
        last = tune
    assert np.mean(right) > 0.8
    assert np.mean(wrong) < 0.3


def test_training_hears_what_the_model_will_hear():
    spec, notes = melodies.excerpt(5, FRAMES)
    audio = synth.render(melodies.played_on(spec, notes, "organ"), FRAMES)
    lm = CONFIG.lm
    model = melody_chroma(
        audio,
        sample_rate=CONFIG.sample_rate,
        num_frames=84,
        window=lm.chroma_window,
        hop=lm.chroma_hop,
    )
    np.testing.assert_array_equal(melodies.loudest(audio, CONFIG), model.argmax(axis=1))


def test_an_example_is_a_piece_with_a_rendering_of_its_tune():
    codes = np.arange(FRAMES, dtype=np.int16) * np.ones((2, 4, 1), np.int16)
    chroma = np.stack([np.full((2, 84), 3, np.uint8), np.full((2, 84), 8, np.uint8)])
    tunes = np.zeros((2, 2, FRAMES), np.int8)
    tunes[1] = 1
    pieces = melodies.MelodyPieces(codes, tunes, chroma, np.array([7, 8]))
    rng, seen = np.random.default_rng(0), set()
    for _ in range(20):
        segment, caption, melody, labels = pieces.segment_with_chroma_and_labels(rng, 100)
        assert segment.shape == (4, 100)
        assert labels.shape == (2, 100)
        assert caption
        assert (melody.sum(axis=1) == 1).all()
        pitch = int(np.bincount(melody.argmax(axis=1)).argmax())
        assert 0.85 < melody[:, pitch].mean() < 1.01  # a few slips
        seen.add((pitch, int(labels.min()), int(labels.max())))
    assert seen == {(3, 0, 0), (8, 1, 1)}


def test_the_labels_name_the_last_note_and_its_age():
    notes = [composer.Note("flute", 3, 2, 67, 0.9), composer.Note("flute", 6, 20, 69, 0.9)]
    spec = dataclasses.replace(melodies.excerpt(1, FRAMES)[0], lead="flute")
    backing = composer.Note("flute", 7, 2, 60, 0.4)
    pitch, age = melodies.tune_labels(spec, [*notes, backing], 30)
    assert pitch.tolist() == [12] * 3 + [7] * 3 + [9] * 24
    assert age.tolist() == [11] * 3 + [0, 1, 2] + [*range(12)] + [11] * 12
    assert int(pitch.max()) < melodies.LABELS[0]
    assert int(age.max()) < melodies.LABELS[1]


@pytest.fixture(scope="module")
def bundled():
    return MusicGen.from_pretrained("nano-melody")


@pytest.fixture(scope="module")
def tunes():
    """Held-out pieces: what they are asked as, and their tunes on another instrument."""
    asked, played = [], []
    for seed in range(80_000_000, 80_000_008):
        spec, notes = melodies.excerpt(seed, FRAMES)
        other = next(lead for lead in ("flute", "organ", "piano") if lead != spec.lead)
        asked.append(captions.caption(spec, np.random.default_rng(seed)))
        played.append(synth.render(melodies.played_on(spec, notes, other), FRAMES))
    return asked, np.stack(played)


def test_the_bundled_model_is_the_one_that_the_command_makes():
    made = build_melody.melody_config(checkpoint.load_config(find_model("nano")))
    assert checkpoint.load_config(find_model("nano-melody")) == made


def test_generate_takes_the_melody_model_when_it_is_given_a_melody(tunes, tmp_path, capsys):
    soundfile.write(tmp_path / "tune.wav", tunes[1][0], synth.SAMPLE_RATE)
    words = ["generate", "flute", "--melody", str(tmp_path / "tune.wav"), "--duration", "0.4"]
    words += ["-o", str(tmp_path / "out.wav"), "--no-separate", "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "nano-melody"
    assert cli.main([*words, "--model", "nano"]) == 2
    assert "nano takes no melody: use a melody model, such as nano-melody" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_tune_is_played_on_the_instrument_asked_for(bundled, tunes):
    """Far more of its frames have the pitch class of its own tune than of another one's."""
    asked, played = tunes
    out = bundled.generate_with_chroma(
        asked, played[:, None], synth.SAMPLE_RATE, separate=False, duration=10.0, seed=1
    )
    heard = np.stack([melodies.loudest(clip[0], bundled.config) for clip in out.audio])
    given = np.stack([melodies.loudest(tune, bundled.config) for tune in played])
    own, others = (heard == given).mean(), (heard == np.roll(given, 1, axis=0)).mean()
    assert own > others + 0.2


@pytest.mark.slow
def test_a_build_makes_a_melody_model_and_another_goes_on_from_it(tmp_path, monkeypatch):
    """One command: nano's codec and text encoder, and a small language model trained on them."""
    monkeypatch.setattr(build_melody, "SECONDS", 2.4)
    monkeypatch.setattr(build_melody, "BATCH", 2)
    monkeypatch.setattr(build_melody, "HELD_OUT_PIECES", 2)
    whole = build_melody.melody_config

    def small(base):
        config = whole(base)
        lm = dataclasses.replace(config.lm, num_layers=1)
        return dataclasses.replace(config, lm=lm, max_duration=2.4)

    monkeypatch.setattr(build_melody, "melody_config", small)
    short = build_melody.training(steps=2)
    folder = build_melody.build(tmp_path / "run", config=short, pieces=range(3))
    model = MusicGen.from_pretrained(folder)
    lm = model.config.lm
    assert (lm.conditioning, lm.chroma_bins, lm.chroma_window) == ("cross", 12, 2560)
    info = checkpoint.load_info(folder)
    assert [info.components[name].get("of") for name in ("t5", "encodec", "lm")] == [
        "nano",
        "nano",
        None,
    ]
    assert not (folder / "encodec").exists()
    spec, notes = melodies.excerpt(1, 60)
    tune = synth.render(notes, 60)
    settings = {"separate": False, "duration": 0.4}
    out = model.generate_with_chroma(["flute"], tune[None], synth.SAMPLE_RATE, **settings)
    assert out.codes.shape == (1, 4, 10)
    logs = (tmp_path / "run" / "lm.jsonl").read_text()
    assert '"wrong melodies"' in logs
    before = (folder / "config.json").read_bytes()
    assert build_melody.build(tmp_path / "run", config=short, pieces=range(3)) == folder
    assert (tmp_path / "run" / "lm.jsonl").read_text() == logs
    assert (folder / "config.json").read_bytes() == before
    # The next run begins with all weights of the first.
    config = build_melody.melody_config(checkpoint.load_config(find_model("nano")))
    begun = build_melody.beginning(folder, config)
    loaded = build_melody.loading.load_float_lm(folder, config)
    np.testing.assert_array_equal(begun["emb"]["embedding"], loaded["emb"]["embedding"])
    name = "chroma_conditioner"
    np.testing.assert_array_equal(
        begun[name]["output_proj"]["weight"], loaded[name]["output_proj"]["weight"]
    )
    assert spec.lead in composer.LEADS
    # Packed with the mean, a model lies half-way.
    above = jax.tree.map(lambda x: np.asarray(x) + 2, loaded)
    between = mean_of(above, language_model(folder))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, np.asarray(y) + 1, atol=1e-6), between, loaded
    )
