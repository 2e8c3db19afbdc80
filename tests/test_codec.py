"""A codec by itself: PyTorch's numbers (goldens), files of codes, the command line."""

import dataclasses
import io
import json
import shutil
import zipfile

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax import Codec, EncodedAudio, UserError, audio
from musicgen_jax.commands.cli import main
from musicgen_jax.config import (
    ENCODEC_24KHZ,
    ENCODEC_32KHZ,
    ENCODEC_48KHZ,
    EncodecConfig,
    from_dict,
    to_dict,
)
from musicgen_jax.convert import convert
from musicgen_jax.convert.pipeline import abstract_params
from musicgen_jax.nano.composer import Note
from musicgen_jax.nano.synth import SAMPLE_RATE, render
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.encodec.segments import overlap_add, segments
from musicgen_jax.storage import checkpoint, codec_file
from musicgen_jax.storage.codec_file import pack, unpack
from tests.helpers import paths
from tests.helpers.tolerance import assert_close

GOLDENS = paths.GOLDENS / "codecs"
SIZES = {"n_filters": 4, "dimension": 12, "bins": 32, "lstm": 1, "conv_shortcut": True}
CONFIGS = {
    "24khz": EncodecConfig(**SIZES, sample_rate=180, ratios=(3, 2), n_q=5, causal=True),
    "48khz": EncodecConfig(
        **SIZES,
        sample_rate=200,
        channels=2,
        ratios=(4, 2),
        n_q=4,
        norm="time_group_norm",
        normalize=True,
        chunk_length_s=1.0,
        overlap=0.1,
    ),
}
# What a file without settings is taken for; the sizes come from its tensors all the same.
ORIGINAL = {
    "24khz": {"sample_rate": 24000},
    "48khz": {"sample_rate": 48000, "overlap": 0.01},
}

# --- Numbers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> the converted folder of transformers' files."""
    folder = tmp_path_factory.mktemp("codecs")
    for kind, config in CONFIGS.items():
        said = convert(GOLDENS / kind / "transformers", folder / kind, name=kind)
        assert said == {"encodec": config}
    return {kind: folder / kind for kind in CONFIGS}


@pytest.mark.parametrize("kind", CONFIGS)
def test_codes_levels_and_sound_are_those_of_pytorch(folders, kind):
    expected = np.load(GOLDENS / kind / "expected.npz")
    codec = Codec.from_pretrained(folders[kind])
    assert (codec.sample_rate, codec.channels) == (
        CONFIGS[kind].sample_rate,
        CONFIGS[kind].channels,
    )
    encoded = codec.encode(expected["audio"], codec.sample_rate)
    np.testing.assert_array_equal(encoded.codes, expected["codes"])
    if "scales" in expected:
        assert_close(encoded.scales, expected["scales"], 1e-6)
    assert_close(codec.decode(encoded), expected["wave"])


@pytest.mark.parametrize("kind", CONFIGS)
def test_original_files_give_the_same_weights(folders, kind, tmp_path):
    said = convert(GOLDENS / kind / "original.th", tmp_path / "ours")
    config = dataclasses.replace(CONFIGS[kind], **ORIGINAL[kind])
    assert said == {"encodec": config}
    abstract = abstract_params("encodec", config)
    ours, theirs = (
        checkpoint.load_params(folder, "encodec", abstract)
        for folder in (tmp_path / "ours", folders[kind])
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_first_upload_of_the_32_khz_codec_is_refused(tmp_path):
    source = shutil.copytree(GOLDENS / "24khz" / "transformers", tmp_path / "encodec_32khz")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"sampling_rate": 32000}))
    with pytest.raises(UserError, match=r"first upload .* download it again"):
        convert(source, tmp_path / "ours")


def count(config):
    """Numbers in the official file: parameters, weight norm's gains, statistics of codebooks."""
    shapes = nnx.state(nnx.eval_shape(lambda: Encodec(config, rngs=nnx.Rngs(0))), nnx.Param)
    flat, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(shapes))
    gains = 0
    if config.norm == "weight_norm":
        for path, leaf in flat:
            keys = [str(key.key) for key in path]
            if keys[-1] == "weight" and leaf.ndim == 3:
                # One of a direction's first axis: outputs, of a transposed convolution inputs.
                transposed = keys[0] == "decoder" and len(keys) == 4 and leaf.shape[1] != 128
                transposed &= keys[2] != "15"
                gains += leaf.shape[1 if transposed else 2]
    books = config.n_q * (1 + config.bins + config.bins * config.dimension)
    widest = config.n_filters * 2 ** len(config.ratios)
    second_biases = 2 * config.lstm * 4 * widest
    return sum(leaf.size for _, leaf in flat) + gains + books + second_biases


@pytest.mark.parametrize(
    ("config", "megabytes"), [(ENCODEC_24KHZ, 93.1), (ENCODEC_32KHZ, 236.0), (ENCODEC_48KHZ, 76.3)]
)
def test_official_codecs_have_the_official_sizes(config, megabytes):
    assert count(config) * 4 / 1e6 == pytest.approx(megabytes, abs=0.06)


@pytest.mark.parametrize(
    ("config", "bandwidth", "books"),
    [
        *((ENCODEC_24KHZ, kbps, n) for kbps, n in ((1.5, 2), (3, 4), (6, 8), (12, 16), (24, 32))),
        *((ENCODEC_48KHZ, kbps, n) for kbps, n in ((3, 2), (6, 4), (12, 8), (24, 16))),
        (ENCODEC_32KHZ, 2.2, 4), (ENCODEC_32KHZ, 0.55, 1), (ENCODEC_32KHZ, 1.6, 2),
        (ENCODEC_32KHZ, None, 4),
    ],
)  # fmt: skip
def test_books_by_bandwidth(config, bandwidth, books):
    assert config.num_books(bandwidth) == books


@pytest.mark.parametrize("bandwidth", [0, -1, 0.5, 24.8, float("nan"), float("inf")])
def test_impossible_bandwidths(bandwidth):
    with pytest.raises(ValueError, match=r"from 0.75 to 24 kb/s"):
        ENCODEC_24KHZ.num_books(bandwidth)


def test_configs_survive_json():
    for config in (ENCODEC_24KHZ, ENCODEC_48KHZ):
        assert from_dict(EncodecConfig, json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ValueError, match="norm must be"):
        EncodecConfig(norm="batch_norm")


def test_segments_of_the_official_codec():
    parts = segments(ENCODEC_48KHZ, 100_000)
    assert [part.start for part in parts] == [0, 47520, 95040]
    assert [part.width for part in parts] == [48000, 48000, 4960]
    assert [part.frames for part in parts] == [150, 150, 16]
    assert segments(ENCODEC_24KHZ, 100_000) == [(0, 100_000, 313)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 900), st.integers(0, 50))
def test_segments_of_one_sound_add_up_to_it(num_samples, percent):
    config = dataclasses.replace(CONFIGS["48khz"], overlap=percent / 100)
    clip = np.random.default_rng(0).normal(size=(1, 2, num_samples + 200)).astype(np.float32)
    parts = segments(config, num_samples)
    assert parts[-1].start + parts[-1].width == num_samples
    decoded = (clip[..., part.start : part.start + 8 * part.frames] for part in parts)
    whole = np.concatenate([*overlap_add(config, num_samples, decoded)], axis=2)
    assert_close(whole, clip[..., :num_samples], 1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_later_sound_does_not_reach_back(folders, kind):
    """A causal codec's codes, and those of whole earlier segments, are fixed once heard."""
    codec = Codec.from_pretrained(folders[kind])
    clip = np.load(GOLDENS / kind / "expected.npz")["audio"]
    other = clip.copy()
    other[..., 61 if kind == "24khz" else 200 :] = 0.5
    ours, theirs = (codec.encode(x, codec.sample_rate).codes for x in (clip, other))
    fixed = 61 // 6 if kind == "24khz" else 25
    np.testing.assert_array_equal(ours[..., :fixed], theirs[..., :fixed])
    assert (ours[..., fixed:] != theirs[..., fixed:]).any()


def test_silence(folders):
    codec = Codec.from_pretrained(folders["48khz"])
    clip = np.load(GOLDENS / "48khz" / "expected.npz")["audio"]  # whose programs there are
    encoded = codec.encode(np.zeros_like(clip), codec.sample_rate)
    assert encoded.scales is not None
    np.testing.assert_allclose(encoded.scales, 1e-8)
    assert np.abs(codec.decode(encoded)).max() < 1e-4


# --- Files of codes ----------------------------------------------------------------------------


def example(kind="48khz", clips=2, length=545):
    """Random codes, as a codec could have written them."""
    config, rng = CONFIGS[kind], np.random.default_rng(0)
    parts = segments(config, length)
    shape = clips, 3, sum(part.frames for part in parts)
    scales = rng.random((clips, len(parts)), np.float32) if config.normalize else None
    codes = rng.integers(0, config.bins, shape, dtype=np.int32)
    return EncodedAudio(codes, scales, length, config, "a codec", "0123456789abcdef")


@pytest.mark.parametrize("kind", CONFIGS)
def test_written_and_read(tmp_path, kind):
    encoded = example(kind)
    path = codec_file.write(tmp_path / "deep" / "x.npz", encoded)
    read = codec_file.read(path)
    np.testing.assert_array_equal(read.codes, encoded.codes)
    assert read.codes.dtype == np.int32
    if encoded.scales is not None:
        np.testing.assert_array_equal(read.scales, encoded.scales)
    for name in ("length", "config", "codec", "fingerprint", "sample_rate", "channels"):
        assert getattr(read, name) == getattr(encoded, name)
    assert [file.name for file in path.parent.iterdir()] == ["x.npz"]
    codes = np.load(path, allow_pickle=False)["codes"]  # anybody's numpy reads it
    assert len(codes) == -(-encoded.codes.size * 5 // 8)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 16), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packed_codes(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, count, dtype=np.int32)
    packed = pack(codes, bits)
    assert len(packed) == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack(packed, count, bits), codes)


def test_a_packed_code_has_its_highest_bit_first():
    assert pack(np.array([0b10110, 0b00001]), 5).tolist() == [0b10110000, 0b01000000]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file's bytes."""
    path = tmp_path_factory.mktemp("codes") / "x.npz"
    return codec_file.write(path, example()).read_bytes()


def rebuilt(data, change=lambda arrays: None, header=lambda header: None, compression=0):
    """The file with other arrays, or another header, and right checksums."""
    arrays = dict(np.load(io.BytesIO(data), allow_pickle=False))
    fields = json.loads(arrays["header"].tobytes())
    arrays["header"] = None
    header(fields)
    change(arrays)
    if arrays.get("header", 0) is None:
        arrays["header"] = np.frombuffer(json.dumps(fields).encode(), np.uint8)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array))
            archive.writestr(f"{name}.npy", member.getvalue())
    return out.getvalue()


def check_refused(path, data, message="is not a file of codes from musicgen-jax"):
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        codec_file.read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


HEADERS = {
    "format": ["another", None, 3],
    "codec": ["two\nlines", 5, "x" * 999, "\x1b[2J"],
    "fingerprint": [None, ["a"]],
    "length": [0, -1, 544.5, 10**6, 10**39, True, None, "545"],
    "shape": [[2, 3], [2, 3, 0], [2, 3, 71], [1, 6, 72], [2**20, 2**20, 2**20], [6, 3, -1], 5, {}],
    "config": [{}, None, {"ratio": [1]}, {"n_filters": "4"}],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in HEADERS.items() for v in vs])
def test_headers_that_lie(tmp_path, whole, name, value):
    codec_file_bytes = rebuilt(whole, header=lambda header: header.update({name: value}))
    check_refused(tmp_path / "x.npz", codec_file_bytes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bins", 31), ("bins", 1), ("bins", 0), ("bins", 2**40), ("n_q", 2), ("n_q", 0),
        ("sample_rate", 0), ("sample_rate", -5), ("sample_rate", 10**300), ("ratios", []),
        ("ratios", [0, 2]), ("ratios", [2] * 99), ("ratios", [10**9, 10**9]), ("channels", 0),
        ("chunk_length_s", 1e-9), ("chunk_length_s", float("nan")), ("overlap", 0.9999),
        ("chunk_length_s", float("inf")), ("chunk_length_s", 1e300), ("chunk_length_s", None),
        ("normalize", False), ("normalize", 1), ("norm", "x"), ("dilation_base", 10**30),
    ],
)  # fmt: skip
def test_architectures_that_lie(tmp_path, whole, name, value):
    data = rebuilt(whole, header=lambda header: header["config"].update({name: value}))
    check_refused(tmp_path / "x.npz", data)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("header"),
        lambda arrays: arrays.pop("codes"),
        lambda arrays: arrays.pop("scales"),
        lambda arrays: arrays.update(more=np.zeros(1)),
        lambda arrays: arrays.update(codes=arrays["codes"][:-1]),
        lambda arrays: arrays.update(codes=arrays["codes"].astype(np.int64)),
        lambda arrays: arrays.update(codes=arrays["codes"][None]),
        lambda arrays: arrays.update(scales=-arrays["scales"]),
        lambda arrays: arrays.update(scales=arrays["scales"][:, 1:]),
        lambda arrays: arrays.update(scales=np.full_like(arrays["scales"], np.inf)),
        lambda arrays: arrays.update(scales=arrays["scales"].astype(np.float64)),
        lambda arrays: arrays.update(header=np.frombuffer(b"[" * 60_000, np.uint8)),
        lambda arrays: arrays.update(header=np.frombuffer(b"\xff{", np.uint8)),
        lambda arrays: arrays.update(header=np.frombuffer(b"{}", np.uint8)),
    ],
)
def test_other_arrays(tmp_path, whole, change):
    check_refused(tmp_path / "x.npz", rebuilt(whole, change))


def test_other_files(tmp_path, whole):
    path = tmp_path / "x.npz"
    check_refused(path, b"")
    check_refused(path, b"RIFF")
    check_refused(path, rebuilt(whole, compression=zipfile.ZIP_DEFLATED), "compressed")
    newer = rebuilt(whole, header=lambda header: header.update(version=2))
    check_refused(path, newer, "has version 2, but this musicgen-jax reads 1")
    with pytest.raises(UserError, match="cannot read"):
        codec_file.read(tmp_path / "absent.npz")
    with pytest.raises(UserError, match="not a file"):
        codec_file.read(tmp_path)
    with pytest.raises(UserError, match=r"end in \.npz"):
        codec_file.write(tmp_path / "x.wav", example())
    out = io.BytesIO()
    np.savez(out, header=np.array([{"pickled": True}], object), codes=np.zeros(1, np.uint8))
    check_refused(path, out.getvalue())
    # An array of ten thousand million bytes, by its header alone.
    member = io.BytesIO()
    np.lib.format.write_array(member, np.zeros(100, np.uint8))
    huge = member.getvalue().replace(b"(100,), }        ", b"(%d,), }" % 10**10)
    assert huge != member.getvalue()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("codes.npy", huge)
    check_refused(path, out.getvalue(), "the wrong size")
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(codec_file.MAX_BYTES + 1)
    with pytest.raises(UserError, match="larger than 64 MiB"):
        codec_file.read(path)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_a_user_error_or_codes(tmp_path_factory, whole, flips):
    data = bytearray(whole)
    for place, change in flips:
        data[place % len(data)] ^= change
    path = tmp_path_factory.getbasetemp() / "flipped.npz"
    path.write_bytes(data)
    try:
        encoded = codec_file.read(path)
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        return
    assert encoded.codes.min() >= 0
    assert encoded.codes.max() < encoded.config.bins


def test_every_truncation(tmp_path, whole):
    for length in range(0, len(whole), 17):
        check_refused(tmp_path / "x.npz", whole[:length])


# --- With a codec ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano():
    return Codec.from_pretrained("nano")


def tone(rate, channels=2):
    time = np.arange(rate) / rate  # as long as the music: one program serves both
    wave = 0.3 * np.sin(2 * np.pi * 220 * time) * np.exp(-time)
    return np.tile(wave, (channels, 1)).astype(np.float32)


def spectrum(wave):
    return np.abs(np.fft.rfft(wave * np.hanning(len(wave))))


def test_there_and_back_with_the_bundled_codec(nano, tmp_path, capsys):
    source, codes, out = (str(tmp_path / name) for name in ("in.wav", "x.npz", "out.wav"))
    music = render([Note("organ", 1, 22, pitch, 0.8) for pitch in (60, 64, 67)], 25)
    audio.write(source, audio.resample(music[None], SAMPLE_RATE, 22050), 22050)
    assert main(["codec", "encode", source, codes]) == 0
    assert f"wrote {codes} (1.00 s, {nano.config.bandwidth:g} kb/s)" in capsys.readouterr().out
    assert main(["codec", "decode", codes, out]) == 0
    wave, rate = audio.read(out)
    heard, _ = audio.read(source)
    original = audio.convert_audio(heard, 22050, nano.sample_rate, 1)
    assert (rate, wave.shape) == (nano.sample_rate, original.shape)
    encoded = nano.encode(heard, 22050)
    np.testing.assert_array_equal(codec_file.read(codes).codes, encoded.codes)
    decoded = nano.decode(encoded)
    assert decoded.dtype == np.float32
    assert np.abs(wave - decoded[0]).max() < 1 / 32768  # the level stays: 16 bits are all it costs
    assert np.corrcoef(spectrum(original[0]), spectrum(wave[0]))[0, 1] > 0.8  # still that chord


def test_fewer_books_are_a_coarser_sound_of_the_same_codes(nano):
    rate, config = nano.sample_rate, nano.config
    least = nano.encode(tone(rate, channels=1), rate, config.bandwidth_per_book)
    most = nano.encode(tone(rate, channels=1), rate)
    assert (least.codes.shape[1], most.codes.shape[1]) == (1, config.n_q)
    np.testing.assert_array_equal(least.codes[:, 0], most.codes[:, 0])
    assert nano.decode(least).shape == nano.decode(most).shape == (1, 1, rate)


def test_codes_of_another_codec_are_refused(nano, folders, tmp_path, capsys):
    codes = str(codec_file.write(tmp_path / "x.npz", example(clips=1)))
    assert main(["codec", "decode", codes, str(tmp_path / "x.wav")]) == 2
    error = capsys.readouterr().err
    assert "made with the codec 'a codec', and 'nano' is a different one" in error
    assert error.count("\n") == 1
    # The same architecture with other weights is another codec too.
    with pytest.raises(UserError, match="weights differ"):
        Codec.from_pretrained(folders["48khz"]).decode(example())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "IN", "x.wav"], "must end in .npz"),
        (["decode", "x.npz", "x.mp3"], "must end in .wav or .flac"),
        (["encode", "absent.wav", "x.npz"], "absent.wav"),
        (["encode", "IN", "x.npz", "--bandwidth", "1000"], "bandwidth must be from"),
        (["encode", "IN", "x.npz", "--model", "absent"], "no model 'absent'"),
        (["decode", "TWO", "x.wav"], "holds 2 clips"),
        (["decode", "IN", "x.wav"], "is not a file of codes"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    audio.write("in.wav", tone(8000), 8000)
    codec_file.write("two.npz", example(clips=2))
    places = {"IN": "in.wav", "TWO": "two.npz"}
    assert main(["codec", *(places.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_bandwidth_must_be_a_number(nano):
    with pytest.raises(UserError, match="must be a number"):
        nano.encode(tone(8000), 8000, "6")
