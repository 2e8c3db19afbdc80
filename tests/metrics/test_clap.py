"""CLAP against laion-clap's own code, and how a clip becomes rows."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from musicgen_jax import audio, metrics
from musicgen_jax.commands import cli
from musicgen_jax.convert import convert
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.clap import Clap, _embed_text
from musicgen_jax.metrics.clap_audio import (
    LENGTH,
    log_mel,
    mel_filters,
    pieces,
)
from musicgen_jax.metrics.clap_pairs import pair_cosines
from musicgen_jax.metrics.protocols import PROTOCOLS
from tests.goldens.make_goldens_clap import SIGNALS, SPACE, ids, signal
from tests.helpers import clap_files
from tests.helpers.tolerance import assert_close

RATE = 48000
RULES = {name: protocol.clap for name, protocol in PROTOCOLS.items()}
CAPTION = "a calm piano melody with soft strings in the background"


@pytest.fixture(scope="module")
def goldens():
    return clap_files.goldens()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clap")
    clap_files.write_laion(path / "music_audioset_epoch_15_esc_90.14.pt", clap_files.laion_state())
    clap_files.write_tokenizer(path)
    convert(path / "music_audioset_epoch_15_esc_90.14.pt", path / "ours")
    return path / "ours"


@pytest.fixture(scope="module")
def clap(folder):
    return Clap.from_pretrained(folder)


def heard(name, protocol="audiocraft"):
    return list(pieces(signal(name)[None], RATE, RULES[protocol]))


@pytest.mark.parametrize("name", SIGNALS)
def test_the_audio_tower_is_laions(clap, goldens, name):
    (piece,) = heard(name)
    assert_close(log_mel(piece)[::20], goldens[f"{name}/spectrum"], 1e-4, "spectrum")
    rows = clap.embed(signal(name)[None], RATE)
    assert rows.shape == (1, SPACE)
    assert rows.dtype == np.float32
    assert_close(rows[0], goldens[f"{name}/embedding"], 1e-5)


def test_the_text_tower_is_laions(clap, goldens):
    rows = _embed_text(clap.network, ids().astype(np.int32))
    assert_close(rows, goldens["texts"], 1e-5)


def test_the_mel_filters_are_librosas(goldens):
    np.testing.assert_allclose(mel_filters(), goldens["melW"], atol=1e-8)


def test_the_name_is_fadtks(clap, folder):
    assert clap.name == "clap-laion-music"
    assert "one cut of 10 s" in clap.definition
    assert "10 s every 1 s" in Clap.from_pretrained(folder, "fadtk").definition


@pytest.mark.parametrize(
    ("samples", "fadtk"), [(1, 1), (RATE, 1), (RATE + 1, 2), (LENGTH, 10), (LENGTH + 1, 11)]
)
def test_how_many_pieces(samples, fadtk):
    clip = np.random.default_rng(0).normal(0, 0.1, (2, samples)).astype(np.float32)
    for protocol, count in (("audiocraft", 1), ("stable-audio", 1), ("fadtk", fadtk)):
        found = list(pieces(clip, RATE, RULES[protocol]))
        assert [piece.shape for piece in found] == [(LENGTH,)] * count


def test_a_short_clip_is_repeated_whole():
    clip = np.arange(1, 150_001, dtype=np.float32)[None] / 1e6
    (piece,) = pieces(clip, RATE, RULES["audiocraft"])
    np.testing.assert_array_equal(piece[:450_000], np.tile(clip[0], 3))
    assert not piece[450_000:].any()


def test_the_cut_of_a_long_clip_is_its_own():
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 0.1, (1, 600_000)).astype(np.float32) for _ in range(8)]

    def starts(clips):
        cuts = [next(pieces(clip, RATE, RULES["audiocraft"])) for clip in clips]
        return [
            int(np.flatnonzero(clip[0] == cut[0])[0]) for clip, cut in zip(clips, cuts, strict=True)
        ]

    first = starts(clips)
    assert len(set(first)) > 4  # not one place for all
    assert starts(clips[::-1]) == first[::-1]
    # Of the same samples in another layout of memory too.
    assert starts([np.asfortranarray(np.tile(clip, (2, 1)))[:1] for clip in clips]) == first


def test_fadtk_hears_16_bits_from_each_second_on():
    clip = np.random.default_rng(0).normal(0, 0.1, (1, 3 * RATE)).astype(np.float32)
    found = list(pieces(clip, RATE, RULES["fadtk"]))
    whole = np.trunc(np.round(clip[0].astype(np.float64) * 2**15) / 2**15 * 32767) / 32767
    for i, piece in enumerate(found):
        rest = whole[i * RATE :]
        np.testing.assert_allclose(piece[: len(rest)], rest, atol=1e-7)
        assert not piece[len(rest) :].any()


def test_rows_do_not_depend_on_their_neighbours(folder):
    clap = Clap.from_pretrained(folder, "fadtk")
    clip = np.random.default_rng(0).normal(0, 0.1, (1, 6 * RATE)).astype(np.float32)
    rows = clap.embed(clip, RATE)
    assert rows.shape == (6, SPACE)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert_close(clap.embed(clip[:, 5 * RATE :], RATE)[0], rows[5], 1e-5)


def test_texts(clap):
    rows = clap.embed_text([CAPTION, "", "Rock!"] * 4)
    assert rows.shape == (12, SPACE)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert_close(clap.embed_text(["Rock!"]), rows[2:3], 1e-5)
    assert clap.embed_text([]).shape == (0, SPACE)


def test_long_texts_are_cut_after_77_tokens(clap):
    text = " ".join(["drums"] * 300)
    assert clap.tokenizer([text]).shape == (1, 77)
    assert clap.tokenizer([text])[0, -1] == 2
    assert clap.tokenizer.lengths([text])[0] > 300
    np.testing.assert_array_equal(clap.embed_text([text]), clap.embed_text([text + " and flutes"]))


def test_what_is_refused(clap, folder):
    with pytest.raises(UserError, match="NaN"):
        clap.embed(np.full((1, 9000), np.nan, np.float32), RATE)
    with pytest.raises(UserError, match="not empty"):
        clap.embed(np.zeros((1, 0), np.float32), RATE)
    with pytest.raises(UserError, match="too short for CLAP"):
        clap.embed(np.zeros((1, 1), np.float32), 96_000)
    with pytest.raises(UserError, match="list of one"):
        clap.embed_text(CAPTION)
    with pytest.raises(UserError, match="text 1 must be a string"):
        clap.embed_text([CAPTION, None])
    with pytest.raises(UserError, match="text 0 is not valid Unicode"):
        clap.embed_text(["\udcff"])
    with pytest.raises(UserError, match="audiocraft, fadtk, stable-audio"):
        Clap.from_pretrained(folder, "mine")
    with pytest.raises(UserError, match="musicgen-jax convert FILE"):
        Clap.from_pretrained("/nowhere")


def test_the_score():
    a, b = np.array([[1.0, 0], [0, 2.0]]), np.array([[2.0, 0], [1.0, 1.0]])
    np.testing.assert_allclose(pair_cosines(a, b), [1, 0.5**0.5])
    assert metrics.clap_score(a, b) == pytest.approx((1 + 0.5**0.5) / 2)
    assert metrics.clap_score(a, 0 * b) == 0
    for bad in (b[:1], np.full_like(b, np.nan), b[0]):
        with pytest.raises(UserError):
            metrics.clap_score(a, bad)
    with pytest.raises(UserError):
        metrics.clap_score(a[:0], b[:0])


def test_the_command(clap, folder, tmp_path, capsys):
    rng, captions = np.random.default_rng(1), {"a": CAPTION, "b": "Rock!", "c": "drums"}
    for name in captions:
        clip = rng.normal(0, 0.1, (1, 60_000)).astype(np.float32)
        audio.write(tmp_path / f"clips/{name}.wav", clip, 32_000)
    lines = ["id,caption", *(f"{name},{text}" for name, text in captions.items())]
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    words = ["evaluate", "--audio", tmp_path / "clips", "--captions", tmp_path / "captions.csv"]
    words += ["--metrics", "clap", "--clap", folder, "--json"]
    assert cli.main([str(word) for word in words]) == 0
    figure = json.loads(capsys.readouterr().out)["metrics"]["clap"]
    rows = []
    for name in captions:
        wav, rate = audio.read(tmp_path / f"clips/{name}.wav")
        loud = audio.normalize_audio(wav, rate, "loudness", loudness_headroom_db=14)
        rows.append(clap.embed(loud, rate)[0])
    expected = metrics.clap_score(np.stack(rows), clap.embed_text(list(captions.values())))
    assert figure["value"] == pytest.approx(expected, abs=1e-6)
    assert (figure["embedding"], figure["pairs"]) == ("clap-laion-music", 3)
    assert figure["weights"] == clap.weights

    words = ["evaluate", "--audio", tmp_path / "clips", "--reference", tmp_path / "clips"]
    words += ["--metrics", "fad", "--embedding", "clap", "--clap", folder, "--json"]
    assert cli.main([str(word) for word in words]) == 0
    figure = json.loads(capsys.readouterr().out)["metrics"]["fad"]
    assert (figure["protocol"], figure["rows"]) == ("fadtk", 6)  # two seconds of each clip
    assert figure["value"] == pytest.approx(0, abs=1e-6)
