"""Melody: what is heard of audio, and how it reaches the language model; no torch."""

import dataclasses
import json
import logging
import sys

import numpy as np
import pytest
import soundfile

from musicgen_jax import testing
from musicgen_jax.audio import read
from musicgen_jax.commands import cli
from musicgen_jax.conditioning import chroma, melody
from musicgen_jax.errors import UserError
from tests.helpers import shallow

RATE, SECONDS = 4000, 10.0
SETTINGS = {"duration": 0.2, "separate": False, "seed": [1, 2, 3]}
TEXTS = ["slow strings, a warm bass and a calm piano", None, "bells"]


@pytest.fixture(scope="module")
def model():
    return testing.random_model(shallow.MELODY)


def tone(frequency, seconds, rate=RATE, channels=1):
    wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[None], channels, axis=0).astype(np.float32)


def tune(*frequencies, seconds=2.5, **settings):
    """One tone after the other."""
    return np.concatenate([tone(f, seconds, **settings) for f in frequencies], axis=1)


def pitches(one_hot):
    return [chroma.PITCHES[i] for i in np.asarray(one_hot).argmax(axis=-1)]


MELODIES = [tune(262, 330, 392), tone(440, 1.3), tune(294, 349, 440, 523, 587, 698)]


# --- The chromagram ------------------------------------------------------------------------------


def test_filter_bank():
    """Figures of librosa's `filters.chroma` at the official rate."""
    bank = chroma.filter_bank(32000)
    assert bank.shape == (12, 8193)
    assert bank.sum() == pytest.approx(4159.9428, abs=1e-4)
    assert bank.max() == pytest.approx(0.98201, abs=1e-5)
    assert np.abs(bank[:, 0]).max() < 1e-6
    expected = [0] * 7 + [0.0003, 0.1278, 0.8661, 0.1075, 0.0002]
    np.testing.assert_allclose(bank[:, 225], expected, atol=5e-5)


def test_official_models_hear_235_frames():
    for seconds, frames in ((30, 235), (0.1, 5), (16384 / 32000, 5), (1, 8)):
        assert chroma.frame_count(int(seconds * 32000)) == frames


@pytest.mark.parametrize(("frequency", "name"), [(261.63, "C"), (329.63, "E"), (440.0, "A")])
def test_tones(frequency, name):
    heard = chroma.melody_chroma(tone(frequency, 3)[0], sample_rate=RATE, num_frames=10)
    assert pitches(heard) == [name] * 10


def test_a_short_window_hears_short_notes():
    """Eight notes a second: half a second's window hears only some of them."""
    names = ["G", "A", "B", "C", "D", "E", "F#", "G"]
    notes = [392, 440, 494, 523, 587, 659, 740, 784]
    audio = tune(*notes, seconds=0.125, rate=16000)[0]
    grid = {"window": 1600, "hop": 2000}
    frames = chroma.frame_count(len(audio), **grid)
    later = np.concatenate([np.zeros(1000, np.float32), audio])  # frames in the middle of notes
    heard = chroma.melody_chroma(later, sample_rate=16000, num_frames=frames, **grid)
    assert pitches(heard[1:]) == names


def test_the_filter_bank_follows_a_tuning():
    """A bank for music that is tuned high weighs its tones as the usual one the usual tones."""
    usual = chroma.filter_bank(32000)
    half = chroma.filter_bank(32000, tuning=0.5)
    a, sharp = (round(hertz * 16384 / 32000) for hertz in (880, 880 * 2 ** (0.9 / 12)))
    assert usual[:, a].argmax() == half[:, a].argmax() == half[:, sharp].argmax() == 9
    assert usual[:, sharp].argmax() == 10


@pytest.mark.parametrize("samples", [1, 1000, 40_000, 80_000])
def test_silence_is_c(samples):
    heard = chroma.melody_chroma(np.zeros(samples, np.float32), sample_rate=RATE, num_frames=10)
    assert pitches(heard) == ["C"] * 10


def test_a_short_melody_repeats_frame_by_frame():
    audio = tune(262, 440, 587)[0]  # 7.5 seconds: 8 frames
    heard = chroma.melody_chroma(audio, sample_rate=RATE, num_frames=19)
    assert len(set(pitches(heard[:8]))) == 3
    np.testing.assert_array_equal(heard[8:16], heard[:8])
    np.testing.assert_array_equal(heard[16:], heard[:3])


def test_a_long_melody_is_cut_and_its_end_is_not_looked_at():
    audio = tune(262, 440, 587, 330, 392)[0]
    beginning = chroma.samples_heard(10)
    heard = chroma.melody_chroma(audio, sample_rate=RATE, num_frames=10)
    audio[beginning:] = np.nan
    np.testing.assert_array_equal(
        chroma.melody_chroma(audio, sample_rate=RATE, num_frames=10), heard
    )


def test_windows_move_on_and_wrap():
    audio = np.arange(100, dtype=np.float32)
    window = chroma.window_at(audio, 7.25, sample_rate=10, seconds=5.0)
    np.testing.assert_array_equal(window, (np.arange(50) + 72) % 100)


# --- What is heard of any audio ------------------------------------------------------------------


def test_the_public_chroma(model):
    heard = model.chroma(np.stack([tune(262, 330), tune(440, 587)]), RATE, separate=False)
    assert (heard.shape, heard.dtype) == ((2, 10, 12), np.float32)
    assert (heard.sum(axis=2) == 1).all()
    assert pitches(heard[0])[0] == "C"
    assert pitches(heard[1])[0] == "A"


def test_rate_and_channels_do_not_matter(model):
    expected = model.chroma(MELODIES[0], RATE, separate=False)
    for rate, channels in ((4000, 2), (11025, 1), (48000, 2)):
        audio = tune(262, 330, 392, rate=rate, channels=channels)
        np.testing.assert_array_equal(model.chroma(audio, rate, separate=False), expected)


def test_a_dead_channel_does_not_matter(model):
    dead = np.concatenate([MELODIES[0], np.zeros_like(MELODIES[0])])
    expected = model.chroma(MELODIES[0], RATE, separate=False)
    np.testing.assert_array_equal(model.chroma(dead, RATE, separate=False), expected)
    np.testing.assert_array_equal(model.chroma(dead[::-1], RATE, separate=False), expected)


def test_one_sample(model):
    assert model.chroma(np.full((1, 1), 0.5, np.float32), RATE, separate=False).shape[1] == 10


def test_of_three_hours_only_the_beginning_is_looked_at(model):
    """The array takes no memory; a copy of it would take two gigabytes and more."""
    hours = np.broadcast_to(np.float32(0), (2, 3 * 3600 * 44100))
    assert pitches(model.chroma(hours, 44100, separate=False)[0]) == ["C"] * 10


# --- Generation ----------------------------------------------------------------------------------


def test_a_clip_does_not_depend_on_its_neighbours(model):
    """Texts and melodies of different length, one text missing: the same tokens as each alone."""
    together = model.generate_with_chroma(TEXTS, MELODIES, RATE, **SETTINGS)
    for i, (text, sound) in enumerate(zip(TEXTS, MELODIES, strict=True)):
        alone = model.generate_with_chroma(
            [text], sound, RATE, **(SETTINGS | {"seed": SETTINGS["seed"][i : i + 1]})
        )
        np.testing.assert_array_equal(together.codes[i], alone.codes[0])


def test_no_melody_is_the_melody_of_silence(model):
    settings = SETTINGS | {"seed": 4, "use_sampling": False}
    silent = model.generate_with_chroma(TEXTS, np.zeros((1, 9), np.float32), RATE, **settings)
    absent = model.generate_with_chroma(TEXTS, [None] * 3, RATE, **settings)
    del settings["separate"]
    plain = model.generate(TEXTS, **settings)
    np.testing.assert_array_equal(absent.codes, plain.codes)
    np.testing.assert_array_equal(silent.codes[[0, 2]], plain.codes[[0, 2]])


def test_melody_steers_and_one_serves_all(model):
    settings = SETTINGS | {"use_sampling": False}
    one = model.generate_with_chroma(TEXTS, MELODIES[1], RATE, **settings)
    each = model.generate_with_chroma(TEXTS, [MELODIES[1]] * 3, RATE, **settings)
    mixed = model.generate_with_chroma(TEXTS, [MELODIES[1], None, MELODIES[0]], RATE, **settings)
    np.testing.assert_array_equal(one.codes, each.codes)
    np.testing.assert_array_equal(one.codes[0], mixed.codes[0])
    assert (one.codes[1:] != mixed.codes[1:]).mean() > 0.1


# --- Separation ----------------------------------------------------------------------------------


class Listener:
    """Stands for the separator: gives the first half back, at twice the rate, and tells."""

    def __init__(self):
        self.heard = []

    def melody(self, audio, sample_rate):
        self.heard.append((audio.shape, sample_rate))
        half = np.repeat(audio[:, : audio.shape[1] // 2], 2, axis=1)
        return np.concatenate([half, half]), 2 * sample_rate


def test_separated_before_it_is_heard(model, monkeypatch):
    listener = Listener()
    monkeypatch.setattr(melody, "separator_at_hand", lambda: True)
    monkeypatch.setattr(melody, "_load_separator", lambda home: listener)
    audio = tune(440, 587, channels=2)
    heard = model.chroma(audio, RATE)
    # As in the original it is mono, at the model's rate.
    assert listener.heard == [((1, 20000), RATE)]
    assert set(pitches(heard[0])) == {"A"}
    model.chroma(audio, RATE, separate=False)
    model.generate_with_chroma(["bells"], [None], RATE, duration=0.1)
    assert len(listener.heard) == 1


def test_the_real_separator_is_found_and_heard(model, monkeypatch, tmp_path):
    """One with random weights: what it gives is another sound, at a rate of its own."""
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path))
    testing.save_random_separator(tmp_path / melody.SEPARATOR)
    melody._load_separator.cache_clear()
    plain = model.chroma(MELODIES[2], RATE, separate=False)
    separated = model.chroma(MELODIES[2], RATE)
    assert (separated.sum(axis=2) == 1).all()
    assert (separated != plain).any()
    np.testing.assert_array_equal(model.chroma(MELODIES[2], RATE, separate=True), separated)


def test_without_a_separator_it_says_so_once(model, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path))
    melody._say_not_separated.cache_clear()
    with caplog.at_level(logging.WARNING, "musicgen_jax"):
        for _ in range(2):
            model.chroma(MELODIES[0], RATE)
    assert [record.message for record in caplog.records] == [melody.NOT_SEPARATED]
    with pytest.raises(UserError, match="no separator 'htdemucs'"):
        model.chroma(MELODIES[0], RATE, separate=True)


# --- Bad input -----------------------------------------------------------------------------------

SOUND = MELODIES[1]


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (SOUND * np.float32("nan"), RATE, "melody holds NaN"),
        (np.zeros((1, 0), np.float32), RATE, "melody is empty"),
        (SOUND[0], RATE, r"melody must be \[C, W\] or \[B, C, W\]"),
        (SOUND.T, RATE, "looks transposed"),
        ((SOUND * 100).astype(np.int16), RATE, "melody must be float samples"),
        ([], RATE, "melody list is empty"),
        ([np.stack([SOUND, SOUND])], RATE, r"each melody of a list must be \[C, W\]"),
        ([SOUND, SOUND], RATE, "2 melodies for 3 descriptions"),
        (SOUND, 0, "sample rate"),
        (SOUND, "44100", "sample rate"),
        ("song.wav", RATE, "melody must be float"),
        (None, RATE, "melody must be float"),
    ],
)
def test_bad_melodies(model, audio, rate, message):
    with pytest.raises(UserError, match=message) as caught:
        model.generate_with_chroma(TEXTS, audio, rate, **SETTINGS)
    assert "\n" not in str(caught.value)


def test_bad_settings(model):
    with pytest.raises(UserError, match="separate must be True, False or None"):
        model.chroma(SOUND, RATE, separate="yes")
    with pytest.raises(UserError, match="duration"):
        model.generate_with_chroma(["x"], SOUND, RATE, duration="long")


def test_a_text_model_takes_no_melody():
    text_model = testing.random_model(shallow.TEXT)
    for call in (
        lambda: text_model.generate_with_chroma(["x"], SOUND, RATE),
        lambda: text_model.chroma(SOUND, RATE),
    ):
        with pytest.raises(UserError, match=r"debug takes no melody: use a melody model"):
            call()


# --- The command line ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("melody")
    testing.save_random_model(folder / "model", shallow.MELODY)
    soundfile.write(folder / "tune.wav", tune(262, 330, rate=16000).T, 16000)
    return folder


@pytest.fixture(autouse=True)
def no_separator(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path / "nothing here"))


def test_generate_with_a_melody(home, tmp_path, capsys):
    arguments = ["generate", "bells", "--model", str(home / "model"), "--duration", "0.2"]
    arguments += ["--melody", str(home / "tune.wav"), "-o", str(tmp_path / "out.wav")]
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == f"musicgen-jax: {melody.NOT_SEPARATED}\n"
    assert "wrote" in said.out
    assert cli.main([*arguments, "--no-separate"]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main([*arguments, "--separate"]) == 2
    assert "no separator" in capsys.readouterr().err


def test_a_melody_excludes_other_audio(home, tmp_path, capsys):
    sound = str(home / "tune.wav")
    for other in ("--style", "--continue-from"):
        assert cli.main(["generate", "--melody", sound, other, sound]) == 2
        assert f"--melody and {other} cannot be combined" in capsys.readouterr().err


def test_a_folder_of_windows_belongs_to_the_whole_melody(tmp_path):
    model = testing.random_model(dataclasses.replace(shallow.MELODY, max_duration=1.0))
    settings = {"duration": 2.4, "separate": False, "checkpoint": tmp_path}
    given = tune(262, 330, 392, seconds=2.0)
    model.generate_with_chroma(["bells"], given, RATE, **settings)
    other = given.copy()
    other[:, int(1.2 * RATE) : int(1.3 * RATE)] = tone(523, 0.1)  # neither first nor last window
    with pytest.raises(UserError, match="started with a different melody or style"):
        model.generate_with_chroma(["bells"], other, RATE, **settings)
    model.generate_with_chroma(["bells"], given, RATE, **settings)
    file = tmp_path / "settings.json"
    kept = json.loads(file.read_text())
    del kept["followed"]  # as older versions wrote it
    file.write_text(json.dumps(kept))
    model.generate_with_chroma(["bells"], given, RATE, **settings)


def test_chroma_as_data(home, tmp_path, capsys):
    out = tmp_path / "new" / "chroma.npy"
    assert cli.main(["chroma", str(home / "tune.wav"), "-o", str(out), "--no-separate"]) == 0
    assert capsys.readouterr().out == f"wrote {out} (235 frames, 30 s)\n"
    data = np.load(out)
    assert (data.shape, data.dtype) == ((235, 12), np.float32)
    assert set(pitches(data)) == {"C", "E"}
    assert [file.name for file in out.parent.iterdir()] == ["chroma.npy"]


@pytest.mark.extra
@pytest.mark.parametrize("name", ["a$_^$b", "$x", "bad\udcff", "\u97f3\u697d", "two\nlines", ""])
def test_a_picture_of_a_file_with_any_name(tmp_path, name):
    pytest.importorskip("matplotlib")
    from musicgen_jax.audio import plot

    plot.draw_chroma(tmp_path / "x.png", {name: np.eye(12)}, 1.0, chroma.PITCHES)
    plot.draw_spectrogram(tmp_path / "y.png", np.ones(2000), RATE, name)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.extra
def test_chroma_as_a_picture(home, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "chroma.png"
    assert cli.main(["chroma", str(home / "tune.wav"), "-o", str(out), "--no-separate"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["chroma.png"]


@pytest.fixture(scope="module")
def in_one_key(home):
    """A model that plays G major and E minor only."""
    lm = dataclasses.replace(shallow.MELODY.lm, chroma_tonic=7)
    testing.save_random_model(home / "in one key", dataclasses.replace(shallow.MELODY, lm=lm))
    sound = tune(349.2, 440, 466.2, 523.3, rate=16000)  # F, A, B flat and C
    soundfile.write(home / "f.wav", sound.T, 16000)
    return home / "in one key"


def test_the_chroma_of_a_folder_is_what_that_model_plays(home, in_one_key, tmp_path, capsys):
    out = tmp_path / "chroma.npy"
    words = ["chroma", str(home / "f.wav"), "-o", str(out), "--no-separate"]
    assert cli.main([*words, "--model", str(in_one_key)]) == 0
    assert set(pitches(np.load(out))) == {"G", "B", "C", "D"}
    assert capsys.readouterr().err == (
        "musicgen-jax: melody: heard in F major, played in G major\n"
    )
    assert cli.main([*words, "--model", "nano"]) == 2
    assert cli.main([*words, "--model", "encodec_32khz"]) == 2
    assert "no model 'encodec_32khz'" in capsys.readouterr().err


@pytest.mark.extra
def test_the_picture_shows_what_is_heard_and_what_is_played(home, in_one_key, tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    titles = []
    with pytest.MonkeyPatch.context() as patch:
        drawn = figure.Figure.savefig
        patch.setattr(
            figure.Figure,
            "savefig",
            lambda self, *rest, **options: (
                titles.extend(axes.get_title() for axes in self.axes),
                drawn(self, *rest, **options),
            ),
        )
        words = ["chroma", str(home / "f.wav"), "-o", str(tmp_path / "a.png"), "--no-separate"]
        assert cli.main([*words, "--model", str(in_one_key)]) == 0
    assert len(titles) == 2
    assert titles[0].startswith("f.wav: heard in F major")
    assert titles[1] == "played in G major"


def test_a_picture_needs_matplotlib(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "chroma.png"
    assert cli.main(["chroma", str(home / "tune.wav"), "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert error == (
        'musicgen-jax: error: a picture needs matplotlib: pip install "musicgen-jax[plot]"\n'
    )
    assert cli.main(["chroma", str(home / "tune.wav"), "-o", str(tmp_path / "x.jpg")]) == 2
    assert ".png or .npy" in capsys.readouterr().err


def test_reading_the_beginning_of_a_file(home):
    whole, rate = read(home / "tune.wav")
    part, _ = read(home / "tune.wav", seconds=1.5)
    assert part.shape == (1, 1.5 * rate + 1)
    np.testing.assert_array_equal(part, whole[:, : part.shape[1]])
    np.testing.assert_array_equal(read(home / "tune.wav", seconds=99)[0], whole)


# --- Text by cross-attention ---------------------------------------------------------------------


def test_a_melody_in_front_goes_with_a_text_by_cross_attention():
    """Both are heard, a row depends on no other row, and double guidance has its three sides."""
    lm = dataclasses.replace(shallow.MELODY.lm, conditioning="cross")
    model = testing.random_model(dataclasses.replace(shallow.MELODY, lm=lm))

    def codes(texts, melodies, seeds, **more):
        settings = {"duration": 0.2, "separate": False, "seed": seeds, **more}
        return model.generate_with_chroma(texts, melodies, RATE, **settings).codes

    texts, melodies = ["bells", None], [MELODIES[0], None]
    both = codes(texts, melodies, [1, 2])
    np.testing.assert_array_equal(both[:1], codes(texts[:1], melodies[:1], [1]))
    np.testing.assert_array_equal(both[1:], codes(texts[1:], melodies[1:], [2]))
    assert (both[:1] != codes(["a march"], melodies[:1], [1])).any()
    assert (both[:1] != codes(["bells"], [MELODIES[2]], [1])).any()
    assert (both[:1] != codes(["bells"], melodies[:1], [1], cfg_coef_beta=5.0)).any()
