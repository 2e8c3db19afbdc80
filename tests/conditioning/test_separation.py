"""Separation: demucs' own numbers (tests/goldens/separation), and what must hold for any audio."""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from musicgen_jax import UserError
from musicgen_jax.conditioning.segments import in_segments
from musicgen_jax.conditioning.separator import Separator, _forward
from musicgen_jax.config import HTDemucsConfig
from musicgen_jax.convert import convert, htdemucs
from musicgen_jax.convert.pickled import Inert, Name
from musicgen_jax.convert.pipeline import abstract_params
from musicgen_jax.convert.rules import apply_table
from musicgen_jax.convert.settings import Part
from musicgen_jax.convert.source import files_to_download, open_source
from musicgen_jax.convert.tensors import LazyTensor
from musicgen_jax.nn.htdemucs.spectrogram import (
    channels_to_complex,
    complex_to_channels,
    spectrogram,
    waveform,
)
from musicgen_jax.storage import checkpoint
from musicgen_jax.testing import DEBUG_SEPARATOR, random_separator, save_random_separator
from tests.helpers import paths
from tests.helpers.tolerance import assert_close

GOLDENS = paths.GOLDENS / "separation"
RATE = DEBUG_SEPARATOR.sample_rate


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The converted separator, and demucs' inputs and outputs."""
    out = tmp_path_factory.mktemp("separation") / "htdemucs"
    convert(GOLDENS, out)
    with np.load(GOLDENS / "expected.npz") as arrays:
        return Separator.from_pretrained(out), dict(arrays)


@pytest.fixture(scope="module")
def separator():
    return random_separator()


def music(seconds: float, channels: int = 2, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * 110 * (c + 1) * time) for c in range(channels)]
    noise = np.random.default_rng(0).standard_normal((channels, time.size))
    return (0.4 * np.stack(tones) + 0.1 * noise).astype(np.float32)


def stacked(stems: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack(list(stems.values()))


# --- demucs' numbers ---------------------------------------------------------------------------


def test_one_segment_equals_demucs(golden):
    separator, expected = golden
    stems = np.asarray(_forward(separator.model, expected["segment_audio"][None]))[0]
    assert_close(stems, expected["segment"], 2e-5)


@pytest.mark.parametrize("name", ["one", "short", "long"])
def test_any_length_equals_demucs(golden, name):
    separator, expected = golden
    stems = separator._separate(expected[f"{name}_audio"], (0, 1, 2, 3), None)
    assert_close(stems, expected[f"{name}_applied"], 2e-5)


def test_shifted_seams_equal_demucs(golden):
    """demucs drew 123 of 500 samples, that is, 377 samples of silence in front."""
    separator, expected = golden
    length = separator.config.segment_length
    shifted = in_segments(
        lambda mix: np.asarray(_forward(separator.model, mix[None]))[0],
        expected["long_audio"],
        length,
        500 - 123,
    )
    assert_close(shifted, expected["long_shifted"], 2e-5)
    assert np.abs(shifted - expected["long_applied"]).max() > 0.01


def test_normalised_like_demucs(golden):
    separator, expected = golden
    stems = separator(expected["short_audio"], separator.sample_rate)
    assert tuple(stems) == ("drums", "bass", "other", "vocals") == separator.sources
    assert_close(stacked(stems), expected["short_separated"], 2e-5)


def test_melody_is_vocals_and_other_as_in_audiocraft(golden):
    separator, expected = golden
    melody, rate = separator.melody(expected["long_audio"], separator.sample_rate)
    assert rate == 1000
    assert melody.dtype == np.float32
    applied = expected["long_applied"]
    assert_close(melody, applied[2] + applied[3], 2e-5)


# --- Spectrogram -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [641, 1203])
def test_waveform_undoes_spectrogram_up_to_the_highest_bin(width):
    nfft = 256
    audio = music(1.0)[:, :width]
    spectra = spectrogram(jnp.asarray(audio), nfft)
    assert spectra.shape == (2, -(-width // 64), 128)
    # What is dropped alternates in sign from sample to sample: the mean of neighbours has none.
    back = np.asarray(waveform(spectra, width))
    assert back.shape == audio.shape
    inner = slice(nfft, -nfft)
    smooth = [(x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:])[:, inner] for x in (back, audio)]
    assert_close(*smooth, relative=0.02)
    tone = np.sin(2 * np.pi * 0.05 * np.arange(width))[None].astype(np.float32)
    again = np.asarray(waveform(spectrogram(jnp.asarray(tone), nfft), width))
    assert_close(again[:, inner], tone[:, inner], relative=1e-4)


def test_spectrum_keeps_the_energy():
    audio = music(1.0)[:, :1024]
    spectra = np.asarray(spectrogram(jnp.asarray(audio), 256))
    # Two sides of the spectrum, and the squared windows add up to 1.5 over each sample.
    twice = 2 * (np.abs(spectra[..., 1:]) ** 2).sum() + (np.abs(spectra[..., 0]) ** 2).sum()
    assert twice / 1.5 == pytest.approx((audio**2).sum(), rel=0.05)


def test_complex_channels_there_and_back():
    spectra = spectrogram(jnp.asarray(music(1.0)[None]), 128)
    channels = complex_to_channels(spectra)
    assert channels.shape == (1, spectra.shape[2], 64, 4)
    np.testing.assert_array_equal(channels[0, ..., 1], spectra[0, 0].imag)
    np.testing.assert_array_equal(channels[0, ..., 2], spectra[0, 1].real)
    np.testing.assert_array_equal(channels_to_complex(channels), spectra)


# --- Segments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [0, 1, 37, 100, 250])
@pytest.mark.parametrize("width", [1, 30, 99, 100, 101, 330])
def test_segments_of_a_model_that_changes_nothing(width, lead):
    audio = np.random.default_rng(width).standard_normal((2, width)).astype(np.float32)
    seen = []

    def process(segment):
        seen.append(segment.shape)
        return np.stack([segment, -2 * segment])

    out = in_segments(process, audio, 100, lead)
    assert_close(out, np.stack([audio, -2 * audio]), 1e-6)
    assert set(seen) == {(2, 100)}
    assert len(seen) == -(-(width + lead) // 75)


def test_the_last_segment_hears_what_was_before():
    audio = np.arange(1, 131, dtype=np.float32)[None]
    seen = []
    in_segments(lambda segment: seen.append(segment) or segment, audio, 100)
    # 55 samples are left at 75; half of the missing 45 are filled from before them.
    np.testing.assert_array_equal(seen[1][0], np.pad(audio[0, 75 - 22 :], (0, 23)))


def test_memory_is_one_segment_whatever_the_length(separator):
    before = _forward._cache_size()
    for seconds in (0.1, 0.5, 1.3):
        separator(music(seconds), RATE)
    assert _forward._cache_size() <= before + 1


# --- Separator ---------------------------------------------------------------------------------


def test_deterministic_but_for_the_seed(separator):
    audio = music(0.7)
    plain = stacked(separator(audio, RATE))
    np.testing.assert_array_equal(plain, stacked(separator(audio, RATE)))
    seeded = [stacked(separator(audio, RATE, seed=seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(seeded[0], seeded[1])
    assert np.abs(seeded[0] - seeded[2]).max() > 1e-3
    assert np.abs(seeded[0] - plain).max() > 1e-3
    assert {stems.shape for stems in seeded} == {(4, 2, audio.shape[1])}


def test_silence_stays_silence(separator):
    silence = np.zeros((2, 1500), np.float32)
    assert not stacked(separator(silence, RATE)).any()
    assert not separator.melody(silence, RATE)[0].any()


def test_louder_in_louder_out(separator):
    audio = music(0.4)
    loud, quiet = (stacked(separator(level * audio, RATE)) for level in (1.0, 0.01))
    assert np.abs(loud).max() > 0.05
    assert_close(quiet, 0.01 * loud, 1e-3)


def test_channels(separator):
    mono, stereo = music(0.4, 1), music(0.4)
    both = stacked(separator(np.repeat(mono, 2, axis=0), RATE))
    np.testing.assert_array_equal(stacked(separator(mono, RATE)), both)
    more = np.concatenate([stereo, mono])
    np.testing.assert_array_equal(stacked(separator(more, RATE)), stacked(separator(stereo, RATE)))


def test_another_rate(separator):
    stems = separator(music(0.5, rate=3200), 3200)
    assert {stem.shape for stem in stems.values()} == {(2, 1000)}
    assert {stem.dtype for stem in stems.values()} == {np.dtype(np.float32)}
    at_rate = separator(music(0.5), RATE)
    assert_close(stems["bass"].std(), at_rate["bass"].std(), relative=0.3)


@pytest.mark.parametrize("rate", [RATE, 96000])
def test_one_sample(separator, rate):
    for audio in (np.full((1, 1), 0.5, np.float32), np.array([[0.5], [-0.5]], np.float32)):
        stems = stacked(separator(audio, rate))
        assert stems.shape == (4, 2, 1)
        assert np.isfinite(stems).all()
        assert np.isfinite(separator.melody(audio, rate)[0]).all()


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.full((2, 9), np.nan, np.float32), RATE, "NaN or infinite"),
        (np.full((2, 9), np.inf, np.float32), RATE, "NaN or infinite"),
        (np.zeros((2, 0), np.float32), RATE, "not empty"),
        (np.zeros(9, np.float32), RATE, "channels, samples"),
        (np.zeros((1, 9), np.int16), RATE, "floating point"),
        (np.zeros((1, 9), np.float32), 0, "must be positive"),
    ],
)
def test_bad_audio(separator, audio, rate, message):
    for separate in (separator, separator.melody):
        with pytest.raises(UserError, match=message) as error:
            separate(audio, rate)
        assert "\n" not in str(error.value)


def test_the_model_wants_whole_segments(separator):
    with pytest.raises(ValueError, match=r"must be \[B, 2, 601\]"):
        separator.model(jnp.zeros((1, 2, 600)))


def test_a_model_without_vocals_has_no_melody():
    config = dataclasses.replace(DEBUG_SEPARATOR, sources=("drums", "other"))
    with pytest.raises(UserError, match="no stem 'vocals'"):
        random_separator(config).melody(music(0.1), RATE)


# --- Folders -----------------------------------------------------------------------------------


def test_saved_and_found_by_path_or_name(separator, tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path))
    save_random_separator(tmp_path / "htdemucs")
    loaded = [Separator.from_pretrained(place) for place in (tmp_path / "htdemucs", "htdemucs")]
    assert loaded[0].config == loaded[1].config == DEBUG_SEPARATOR
    jax.tree.map(np.testing.assert_array_equal, nnx_tree(loaded[1]), nnx_tree(separator))


def test_what_is_missing_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICGEN_JAX_HOME", str(tmp_path))
    with pytest.raises(UserError, match="run `musicgen-jax convert ") as error:
        Separator.from_pretrained()
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="run `musicgen-jax convert "):
        Separator.from_pretrained("../elsewhere")
    (tmp_path / "weights.th").write_bytes(b"")
    with pytest.raises(UserError, match=r"is a file: first run `musicgen-jax convert .*weights.th"):
        Separator.from_pretrained(tmp_path / "weights.th")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a model"):
        Separator.from_pretrained("empty")


def test_int8(separator, tmp_path):
    with checkpoint.writing_model(tmp_path / "small") as writer:
        tree = jax.tree.map(np.asarray, nnx_tree(separator))
        writer.write_component("separator", tree, storage="int8")
        writer.finish({"separator": DEBUG_SEPARATOR}, tokenizer=None, license="", source={})
    loaded = Separator.from_pretrained(tmp_path / "small")
    for small, whole in zip(jax.tree.leaves(nnx_tree(loaded)), jax.tree.leaves(tree), strict=True):
        assert np.abs(small - whole).max() <= np.abs(whole).max() / 250


def nnx_tree(separator):
    return nnx.to_pure_dict(nnx.state(separator.model))


# --- Conversion --------------------------------------------------------------------------------

SETTINGS = {
    "sources": ["drums", "bass", "other", "vocals"], "samplerate": 2000, "channels": 4,
    "depth": 2, "nfft": 128, "dconv_mode": 3, "dconv_comp": 2, "bottom_channels": 8,
    "t_layers": 2, "t_heads": 2, "segment": Inert("fractions.Fraction", ("601/2000",)),
}  # fmt: skip


def part(**changes) -> Part:
    return Part("demucs", {}, SETTINGS | changes, "there.th")


def test_settings():
    assert htdemucs.derive_config(part()) == DEBUG_SEPARATOR
    exact = {"_type": "fraction", "numerator": 601, "denominator": 2000}
    pair = Inert("fractions.Fraction", (601, 2000))
    for segment in (exact, pair, 0.3006):
        assert htdemucs.derive_config(part(segment=segment)) == DEBUG_SEPARATOR
    released = {
        "sources": ["drums", "bass", "other", "vocals"], "dconv_mode": 3, "bottom_channels": 512,
        "segment": Inert("fractions.Fraction", ("39/5",)), "samplerate": 44100, "growth": 2.0,
        "multi_freqs": [], "channels_time": None, "t_dropout": 0.02, "some_old_setting": "x",
    }  # fmt: skip
    config = htdemucs.derive_config(Part("demucs", {}, released, "there.th"))
    assert config == HTDemucsConfig()
    assert config.segment_length == Fraction(39, 5) * 44100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cac": False}, "cac = False"),
        ({"t_emb": "cape"}, "t_emb = cape"),
        ({"multi_freqs": [0.5]}, "multi_freqs"),
        ({"t_sparse_self_attn": True}, "t_sparse_self_attn"),
        ({"t_sin_random_shift": 3}, "t_sin_random_shift"),
        ({"norm_starts": 1}, "norms in its encoder"),
        ({"channels_time": 7}, "different width"),
        ({"sources": None}, "does not name its sources"),
        ({"sources": ["a", "a"]}, "different names"),
        ({"depth": 3}, "merging branches"),
        ({"depth": 10**9}, "depth must be from 1 to 8"),
        ({"nfft": 10**30}, "nfft must be from"),
        ({"kernel_size": 6}, "twice an even stride"),
        ({"growth": 1.5}, "growth must be a whole number"),
        ({"t_heads": 3}, "by 3 heads"),
        ({"t_heads": 0}, "t_heads must be from 1"),
        ({"channels": float("nan")}, "channels must be from"),
        ({"channels": "48"}, "channels must be from"),
        ({"freq_emb": "a lot"}, "freq_emb must be a number"),
        ({"freq_emb": float("inf")}, "freq_emb must be a number"),
        ({"segment": Inert("fractions.Fraction", ("1" * 9999,))}, "segment must be a number"),
        ({"segment": Inert("fractions.Fraction", ("1/0",))}, "segment must be a number"),
        ({"segment": Inert("fractions.Fraction", ("1e99999999999",))}, "segment must be a number"),
        ({"segment": Inert("fractions.Fraction", (7, -1))}, "segment must be a number"),
        ({"segment": Inert("os.system", (8,))}, "segment must be a number"),
        ({"segment": 0.01}, "must exceed nfft"),
        ({"segment": 1e9}, "segment must be a number"),
    ],
)
def test_unsupported_settings(changes, message):
    with pytest.raises(UserError, match=message) as error:
        htdemucs.derive_config(part(**changes))
    assert "there.th" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ({"klass": Name("demucs.hdemucs.HDemucs")}, "is a demucs.hdemucs.HDemucs"),
        ({"klass": Name(htdemucs.KLASS), "args": (), "kwargs": None}, "how it is built"),
        ({"klass": Name(htdemucs.KLASS), "args": (1, 2), "kwargs": {}}, "how it is built"),
        ({"klass": 5, "args": (), "kwargs": {}}, "is a 5"),
    ],
)
def test_other_packages(package, message):
    with pytest.raises(UserError, match=message):
        htdemucs.settings_of_package(package, "there.th")


def test_sources_may_come_first():
    package = {"klass": Name(htdemucs.KLASS), "args": (["a"],), "kwargs": {"depth": 2}}
    assert htdemucs.settings_of_package(package, "") == {"sources": ["a"], "depth": 2}


@pytest.fixture(scope="module")
def state():
    """The tensors of the golden file."""
    return open_source(str(GOLDENS)).parts["separator"]


def test_strict_both_ways(state):
    config = htdemucs.derive_config(state)
    abstract = abstract_params("separator", config)
    for key in list(state.tensors)[:: len(state.tensors) // 3]:
        lacking = {k: v for k, v in state.tensors.items() if k != key}
        with pytest.raises(UserError, match="1 missing"):
            apply_table(htdemucs.TABLE, lacking, abstract, "it")
    stranger = LazyTensor((2,), np.dtype(np.float32), lambda: np.zeros(2, np.float32))
    for key in ("encoder.0.norm1.weight", "encoder.9.conv.weight", "tencoder.0.conv.scale"):
        with pytest.raises(UserError, match="1 unexpected"):
            apply_table(htdemucs.TABLE, state.tensors | {key: stranger}, abstract, "it")
    other = state.tensors | {"encoder.0.conv.weight": stranger}
    with pytest.raises(UserError, match="mis-shaped"):
        apply_table(htdemucs.TABLE, other, abstract, "it")


def test_a_folder_of_several_models(tmp_path):
    """htdemucs_ft is four models, each for one stem."""
    (file,) = GOLDENS.glob("*.th")
    for name in ("f7e0c4bc-ba3fe64a.th", "d12395a8-e57c48e6.th"):
        (tmp_path / name).symlink_to(file)
    with pytest.raises(UserError, match="several models of HTDemucs"):
        convert(tmp_path, tmp_path / "out")


def test_only_the_weights_are_downloaded():
    names = {"README.md", "htdemucs.yaml", "955717e8.safetensors", "model-card.th"}
    assert files_to_download(names) == ["955717e8.safetensors"]


def test_safetensors_of_no_separator(tmp_path):
    tensors = {"weight": np.zeros(2, np.float32)}
    for name, metadata, message in (
        (
            "a",
            {"klass": "demucs.demucs.Demucs", "args": "[]", "kwargs": "{}"},
            "is a demucs.demucs",
        ),
        ("b", {"klass": htdemucs.KLASS, "args": "[]", "kwargs": "{"}, "not JSON"),
        ("c", {"klass": htdemucs.KLASS, "args": "[]"}, "not JSON"),
        ("d", {"format": "pt"}, "holds no .*MusicGen"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata)
        with pytest.raises(UserError, match=message):
            convert(tmp_path / f"{name}.safetensors", tmp_path / "out")
