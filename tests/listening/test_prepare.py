"""Making a study: pairs, captions, what raters hear, and what is refused."""

import json
import math
import shutil

import numpy as np
import pytest

from musicgen_jax import audio
from musicgen_jax.errors import UserError
from musicgen_jax.listening import captions, stimuli, study
from musicgen_jax.listening.pairing import pair
from musicgen_jax.listening.prepare import Plan, prepare
from tests.helpers.studies import RATE, SYSTEMS, make_captions, make_clips, make_study, tone


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return make_study(root), root / "study"


def prepared(root, systems, **plan):
    notes = []
    found = prepare(Plan(systems, **plan), root / "study", notes.append)
    return found, notes


def wav_of(folder, clip):
    return audio.read(study.clips_folder(folder) / clip)


# --- The folder -------------------------------------------------------------------------------


def test_the_folder_reads_back(made):
    found, folder = made
    assert study.load(folder) == found
    assert found.systems == ("ours", "other", "reference", "anchor")
    assert [item.scales for item in found.items] == [
        ("overall", "relevance", "melody"),
        ("overall", "relevance"),
    ]


def test_names_and_sizes_of_files_say_nothing(made):
    found, folder = made
    files = sorted(study.clips_folder(folder).iterdir())
    assert len(files) == 2 * 4 + 1
    assert all(study.FILE.fullmatch(file.name) for file in files)
    for item in found.items:
        sizes = {(study.clips_folder(folder) / c.file).stat().st_size for c in item.clips}
        assert len(sizes) == 1


def test_clips_of_a_piece_are_equally_loud_and_never_clipped(made):
    found, folder = made
    for item in found.items:
        levels = []
        for clip in item.clips:
            wav, rate = wav_of(folder, clip.file)
            levels.append(audio.loudness(wav, rate))
            assert np.abs(wav).max() <= 10 ** (-1 / 20) + 1e-4
        assert max(levels) - min(levels) < 0.05
        assert max(levels) == pytest.approx(-18, abs=0.05)


def test_a_peaky_clip_makes_its_piece_quieter_instead_of_clipping():
    quiet = 0.01 * np.ones((1, RATE), np.float32) * np.sin(np.arange(RATE))
    peaky = quiet.copy()
    peaky[0, RATE // 2] = 0.5
    matched = stimuli.match_loudness({"a": quiet, "b": peaky}, RATE, -18.0)
    assert np.abs(matched["b"]).max() == pytest.approx(10 ** (-1 / 20), rel=1e-3)
    loudness = [audio.loudness(wav, RATE) for wav in matched.values()]
    assert loudness[0] == pytest.approx(loudness[1], abs=1e-3)
    assert loudness[0] < -18


def test_mixed_rates_channels_and_lengths_become_one_form(tmp_path):
    systems = make_clips(tmp_path, 1)
    audio.write(systems["ours"] / "piece0.wav", tone(1.7, 220, 0.1, 0).repeat(2, 0), 24_000)
    found, notes = prepared(tmp_path, systems)
    shapes = {wav_of(tmp_path / "study", c.file)[0].shape for c in found.items[0].clips}
    assert shapes == {(2, 24_000)}
    assert len(notes) == 1
    assert "cut to the shortest" in notes[0]


def test_the_anchor_meets_the_mask_of_mushra():
    def gain(frequency, rate):
        t = np.arange(rate) / rate
        wave = np.sin(2 * np.pi * frequency * t)[None]
        middle = slice(rate // 4, 3 * rate // 4)
        out = stimuli.low_pass(wave, rate)[:, middle]
        return 20 * math.log10(np.std(out) / np.std(wave[:, middle]))

    for rate in (16_000, 32_000, 44_100, 48_000):
        for frequency in (50, 1000, 3000, 3500):
            assert gain(frequency, rate) == pytest.approx(0, abs=0.1)
        assert gain(4000, rate) < -25
        assert gain(4500, rate) < -50
        assert gain(7000, rate) < -50


def test_the_anchor_is_the_reference_without_delay(made):
    found, folder = made
    clips = {clip.system: clip.file for clip in found.items[0].clips}
    reference, rate = wav_of(folder, clips["reference"])
    anchor, _ = wav_of(folder, clips["anchor"])
    low = stimuli.low_pass(reference, rate)
    assert np.corrcoef(low[0], anchor[0])[0, 1] > 0.9999


# --- Once more --------------------------------------------------------------------------------


def test_the_same_command_finds_the_study_and_another_is_refused(tmp_path):
    systems = make_clips(tmp_path)
    first, _ = prepared(tmp_path, systems)
    again, _ = prepared(tmp_path, systems)
    assert again == first
    with pytest.raises(UserError, match="holds another study"):
        prepared(tmp_path, systems, seed=1)
    audio.write(systems["ours"] / "piece1.wav", tone(1, 300, 0.1, 5), RATE)
    with pytest.raises(UserError, match="holds another study"):
        prepared(tmp_path, systems)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    systems = make_clips(tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        prepared(tmp_path, systems)
    assert [file.name for file in (tmp_path / "study").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"format": "webMUSHRA"}, "not a 'musicgen-jax listening study 1'"),
        (lambda s: {**s, "seed": "x"}, "seed must be a whole number"),
        (lambda s: {**s, "systems": ["ours"]}, "are not those of the systems"),
        (lambda s: json.loads(json.dumps(s).replace(s["items"][0]["clips"][0]["file"],
                                                    "../../passwords.wav")), "not the name of"),
    ],
)  # fmt: skip
def test_a_changed_study_file_is_refused(change, message, made, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(made[1], folder)
    values = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(change(values)))
    with pytest.raises(UserError, match=message):
        study.load(folder)


def test_a_lost_clip_is_named(made, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(made[1], folder)
    next(study.clips_folder(folder).iterdir()).unlink()
    with pytest.raises(UserError, match=r"wav is missing \(1 clips in all\)"):
        study.load(folder)


# --- Clips that cannot be used ----------------------------------------------------------------


def silent(file):
    audio.write(file, np.zeros((1, RATE), np.float32), RATE)


def not_numbers(file):
    import soundfile

    soundfile.write(file, np.full(RATE, np.nan), RATE, "FLOAT")


def broken(file):
    file.write_bytes(b"RIFF and nothing else")


def short(file):
    audio.write(file, tone(0.4, 220, 0, 0), RATE)


SPOILT = [
    (silent, "is silent"), (not_numbers, "NaN"), (broken, "cannot read"), (short, "at least 1 s"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), SPOILT)
def test_a_bad_clip_is_named_or_skipped(spoil, reason, tmp_path):
    systems = make_clips(tmp_path)
    spoil(systems["other"] / "piece1.wav")
    with pytest.raises(UserError, match=reason) as caught:
        prepared(tmp_path, systems)
    assert "other/piece1.wav" in str(caught.value)
    assert "--skip" in str(caught.value)
    assert not (tmp_path / "study").exists()
    found, notes = prepared(tmp_path, systems, skip=True)
    assert [item.id for item in found.items] == ["piece0"]
    assert any("piece1 is left out" in note and reason in note for note in notes)


def test_nothing_but_bad_clips_is_refused(tmp_path):
    systems = make_clips(tmp_path, 1)
    silent(systems["ours"] / "piece0.wav")
    with pytest.raises(UserError, match="no piece is left"):
        prepared(tmp_path, systems, skip=True)


def test_a_reference_without_low_tones_makes_no_anchor(tmp_path):
    systems = make_clips(tmp_path, 1)
    wave = 0.3 * np.sin(2 * np.pi * 6000 * np.arange(RATE) / RATE)[None].astype(np.float32)
    audio.write(systems["reference"] / "piece0.wav", wave, RATE)
    with pytest.raises(UserError, match=r"nothing below 3.5 kHz"):
        prepared(tmp_path, systems)


def test_without_a_reference_there_is_no_anchor_and_a_word(tmp_path):
    systems = make_clips(tmp_path)
    del systems["reference"]
    found, notes = prepared(tmp_path, systems)
    assert found.systems == ("ours", "other")
    assert "no system is called reference" in notes[0]


# --- Pairs and captions -----------------------------------------------------------------------


def test_missing_pairs_are_named(tmp_path):
    systems = make_clips(tmp_path, 3)
    (systems["ours"] / "piece2.wav").unlink()
    pieces, notes = pair(systems, None)
    assert [piece.id for piece in pieces] == ["piece0", "piece1"]
    assert notes == ["ours has no clip for piece2"]


def test_folders_without_pairs_or_clips_are_refused(tmp_path):
    systems = make_clips(tmp_path, 1)
    (systems["ours"] / "piece0.wav").rename(systems["ours"] / "first.wav")
    with pytest.raises(UserError, match="no piece has a clip of every system: ours has no clip"):
        pair(systems, None)
    (systems["ours"] / "first.wav").unlink()
    with pytest.raises(UserError, match="contains no audio"):
        pair(systems, None)


def test_captions_decide_which_pieces_there_are(tmp_path):
    systems = make_clips(tmp_path, 3)
    texts = captions.read(make_captions(tmp_path, 2))
    pieces, notes = pair(systems, texts)
    assert [piece.caption.text for piece in pieces] == ["a tune, number 0", "a tune, number 1"]
    assert notes == ["the captions have no line for piece2"]


def test_musiccaps_as_published_is_read(tmp_path):
    file = tmp_path / "musiccaps-public.csv"
    file.write_text(
        "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id\n"
        '-0Gj8-vB1q4,30,40,"/m/0140xf","[\'low quality\']","A ""calm"" song,\nin two lines.",4\n'
    )
    (caption,) = captions.read(file).values()
    assert caption.text == 'A "calm" song,\nin two lines.'
    assert list(captions.read(file)) == ["-0Gj8-vB1q4"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "number,text\n1,x\n", "no column for the id"),
        ("a.csv", "id,words\n1,x\n", "no column for the text or the melody"),
        ("a.csv", "id,text\n1,x\n1,y\n", "line 3: the id '1' appears twice"),
        ("a.csv", "id,text\n", "has no rows"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "id,text\n,x\n", "line 2: the id is missing"),
        ("a.jsonl", '{"id": 1, "text": "x"}\n{"id": 1}', "line 2: the id '1' appears twice"),
        ("a.jsonl", '{"id": "1", "text": 5.5}', "line 1: text must be a text"),
        ("a.jsonl", r'{"id": "1", "text": "\ud800"}', "line 1: text is not valid Unicode"),
        ("a.jsonl", r'{"id": "1", "text": "\u0000"}', "line 1: text has a null character"),
        ("a.jsonl", "[1]", "line 1: not a JSON object"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.txt", "x", "is not a table"),
    ],
)
def test_captions_that_cannot_be_used(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        captions.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_melody_is_named(tmp_path):
    systems = make_clips(tmp_path, 1)
    file = tmp_path / "captions.jsonl"
    file.write_text('{"id": "piece0", "melody": "lost.wav"}')
    with pytest.raises(UserError, match=r"lost\.wav"):
        prepared(tmp_path, systems, captions=file)


def test_systems_are_not_mixed_up(made):
    """Each system's clip is its own: the noise of ours is the strongest, then other's."""
    found, folder = made
    for item in found.items:
        noise = {}
        for clip in item.clips:
            wav, rate = wav_of(folder, clip.file)
            spectrum = np.abs(np.fft.rfft(wav[0])) ** 2
            noise[clip.system] = spectrum[int(6500 * len(wav[0]) / rate) :].sum()
        assert noise["ours"] > noise["other"] > noise["reference"] > noise["anchor"]
        assert set(noise) == {*SYSTEMS, "anchor"}
