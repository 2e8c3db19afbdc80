import math
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from musicgen_jax import audio
from musicgen_jax.audio import growing
from musicgen_jax.audio import level as levels
from musicgen_jax.errors import UserError

QUANTUM = 2.0**-15
KEPT = {
    "strategy": "clip",
    "peak_clip_headroom_db": 0,
}  # writes samples within -1 and 1 as they are

waveforms = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 200)),
    elements=st.floats(-1, 1, width=32),
)


def noise(channels=2, samples=8000, level=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal((channels, samples))).astype(np.float32)


def sine(frequency, rate, seconds=2.0, level=1.0):
    time = np.arange(round(rate * seconds)) / rate
    return (level * np.sin(2 * np.pi * frequency * time)).astype(np.float32)[None]


def rms(x):
    return math.sqrt(np.mean(np.square(x, dtype=np.float64)))


# --- Files ------------------------------------------------------------------------------------


@given(
    wave=waveforms,
    rate=st.sampled_from([8000, 32000, 44100]),
    suffix=st.sampled_from(["wav", "flac"]),
)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_round_trip_within_quantisation(tmp_path, wave, rate, suffix):
    path = audio.write(tmp_path / f"x.{suffix}", wave, rate, **KEPT)
    back, back_rate = audio.read(path)
    assert back_rate == rate
    assert back.dtype == np.float32
    assert back.shape == wave.shape
    # Half a step of rounding, and another if full scale had to shrink to 2^15 - 1.
    assert np.abs(back - wave).max() <= 1.5 * QUANTUM


def test_files_are_16_bit_and_exact_where_16_bits_suffice(tmp_path):
    steps = np.array([[-32768, -1, 0, 1, 12345, 32767]])
    for suffix, form in (("wav", "WAV"), ("flac", "FLAC"), ("WAV", "WAV")):
        path = audio.write(tmp_path / f"x.{suffix}", steps * QUANTUM, 32000, **KEPT)
        info = soundfile.info(path)
        assert (info.format, info.subtype) == (form, "PCM_16")
        np.testing.assert_array_equal(audio.read(path)[0], steps * QUANTUM)


def test_full_scale_does_not_wrap(tmp_path):
    path = audio.write(tmp_path / "x.wav", np.array([[1.0, -1.0, 0.5]]), 32000, **KEPT)
    values, _ = soundfile.read(path, dtype="int16")
    assert values.tolist() == [32767, -32767, 16384]


def test_read_sorts_channels_and_rate(tmp_path):
    left, right = noise(1)[0], noise(1, seed=1)[0]
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), 22050, "FLOAT")
    wave, rate = audio.read(str(tmp_path / "x.wav"))
    assert rate == 22050
    assert wave.flags.c_contiguous
    np.testing.assert_array_equal(wave, [left, right])


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_read_lossy_formats(tmp_path, form, subtype):
    wave = sine(440, 32000, 1.0, 0.5)
    path = tmp_path / f"x.{form.lower()}"
    soundfile.write(path, wave.T, 32000, subtype, format=form)
    back, rate = audio.read(path)
    assert rate == 32000
    assert abs(rms(back) - rms(wave)) < 0.02


def test_write_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "x.wav"
    audio.write(path, noise(), 32000)
    assert audio.write(str(path), noise(1, 100), 16000) == path
    assert audio.read(path)[0].shape == (1, 100)
    assert [p.name for p in path.parent.iterdir()] == ["x.wav"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = audio.write(tmp_path / "x.wav", noise(), 32000)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"cannot write .*x\.wav: No space left on device"):
        audio.write(path, noise(1), 32000)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.wav"]


def test_default_strategy_is_peak_at_minus_one_decibel(tmp_path):
    back, _ = audio.read(audio.write(tmp_path / "x.wav", noise(), 32000))
    assert abs(np.abs(back).max() - 10 ** (-1 / 20)) < QUANTUM


def test_write_passes_every_option_on(tmp_path):
    wave = noise(level=0.5, samples=32000)
    options = {
        "strategy": "loudness",
        "loudness_compressor": True,
        "loudness_headroom_db": 5,
    }
    back, _ = audio.read(audio.write(tmp_path / "x.flac", wave, 32000, **options))
    np.testing.assert_allclose(
        back, audio.normalize_audio(wave, 32000, **options), atol=1.5 * QUANTUM
    )
    for options in (
        {"strategy": "rms", "rms_headroom_db": 30},
        {"strategy": "peak", "peak_clip_headroom_db": 9, "normalize": False},
    ):
        back, _ = audio.read(audio.write(tmp_path / "x.flac", wave, 32000, **options))
        expected = audio.normalize_audio(wave, 32000, **options)
        np.testing.assert_allclose(back, expected, atol=1.5 * QUANTUM)
        assert rms(back) < 0.3


@pytest.mark.parametrize("name", ["x", "x.aac", "x.wave", ".wav"])
def test_write_refuses_other_suffixes(tmp_path, name):
    with pytest.raises(UserError, match=r"must end in \.wav, \.flac, \.mp3 or \.ogg$"):
        audio.write(tmp_path / name, noise(), 32000)
    assert not list(tmp_path.iterdir())


def test_write_to_impossible_places(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_text("")
    for path in ("folder.wav", "file/x.wav", "n" * 300 + ".wav"):
        with pytest.raises(UserError, match="cannot write"):
            audio.write(tmp_path / path, noise(), 32000)
    with pytest.raises(UserError, match="flac does not support 9 channels at 32000 Hz"):
        audio.write(tmp_path / "x.flac", noise(9), 32000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.wav"]


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros((1, 0)), "not empty"),
        (np.zeros((0, 5)), "not empty"),
        (np.zeros(5), r"\[channels, samples\]"),
        (np.zeros((1, 1, 5)), r"\[channels, samples\]"),
        (np.zeros((1, 5), np.int16), "floating point"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "NaN or infinite"),
    ],
)
def test_write_refuses_what_is_no_audio(tmp_path, wave, message):
    with pytest.raises(UserError, match=message):
        audio.write(tmp_path / "x.wav", wave, 32000)
    assert not list(tmp_path.iterdir())


def test_read_says_what_is_wrong(tmp_path):
    def refused(path, message):
        with pytest.raises(UserError, match=message) as caught:
            audio.read(path)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.wav", r"cannot read .*none\.wav: No such file")
    refused(tmp_path, "not a file")
    os.mkfifo(tmp_path / "pipe.wav")
    refused(tmp_path / "pipe.wav", "not a file")
    for name, content in {"x.wav": b"hello", "x.raw": bytes(100), "empty.wav": b""}.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not an audio file")
    soundfile.write(tmp_path / "silent.wav", np.zeros((0, 2)), 32000)
    refused(tmp_path / "silent.wav", "holds no samples")
    for value in (np.nan, np.inf):
        soundfile.write(tmp_path / "nan.wav", np.array([0.0, value]), 32000, "FLOAT")
        refused(tmp_path / "nan.wav", "NaN or infinite")


def test_read_refuses_long_files_before_reading_them(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("read")

    soundfile.write(tmp_path / "hour.flac", np.zeros(8000 * 3600, np.int16), 8000)
    assert audio.read(tmp_path / "hour.flac")[0].shape == (1, 8000 * 3600)
    soundfile.write(tmp_path / "long.flac", np.zeros(8000 * 3600 + 1, np.int16), 8000)
    part, _ = audio.read(tmp_path / "long.flac", seconds=3600)  # of a file of any length
    assert part.shape == (1, 8000 * 3600 + 1)
    monkeypatch.setattr(soundfile.SoundFile, "read", never)
    with pytest.raises(UserError, match=r"too long: 1 channels .*; at most 3600 s fit: cut it"):
        audio.read(tmp_path / "long.flac")
    soundfile.write(tmp_path / "wide.wav", np.zeros((100, 2)), 8000)
    monkeypatch.setattr("musicgen_jax.audio.files.MAX_SAMPLES", 199)
    with pytest.raises(UserError, match=r"too long: 2 channels"):
        audio.read(tmp_path / "wide.wav")


def test_read_refuses_a_flac_of_unknown_length(tmp_path):
    path = audio.write(tmp_path / "x.flac", noise(), 32000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples; 0 is "unknown"
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not say its length"):
        audio.read(path)


def read_or_refuse(path):
    """What every file must do: give finite audio or a UserError."""
    try:
        wave, rate = audio.read(path)
    except UserError:
        return None
    assert wave.ndim == 2
    assert wave.size
    assert np.isfinite(wave).all()
    assert rate > 0
    return wave


@given(
    content=st.binary(max_size=300), magic=st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3"])
)
@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_bytes_never_crash(tmp_path, content, magic):
    path = tmp_path / "x.wav"
    path.write_bytes(magic + content)
    read_or_refuse(path)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded")
    wave = noise(2, 3000)
    files = [audio.write(folder / name, wave, 32000) for name in ("x.wav", "x.flac")]
    soundfile.write(folder / "x.ogg", wave.T, 32000)
    return [path.read_bytes() for path in [*files, folder / "x.ogg"]]


@given(data=st.data())
@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_never_crash(tmp_path, encoded, data):
    content = bytearray(data.draw(st.sampled_from(encoded)))
    header = st.integers(0, min(len(content), 120) - 1)
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(header)] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), header, st.integers(0, len(content))))
    path = tmp_path / "damaged"
    path.write_bytes(content[:cut])
    read_or_refuse(path)


def test_a_truncated_wav_gives_what_is_there(tmp_path, encoded):
    path = tmp_path / "x.wav"
    path.write_bytes(encoded[0][: 44 + 4 * 1000])
    assert read_or_refuse(path).shape == (2, 1000)
    for cut in range(0, 44):
        path.write_bytes(encoded[0][:cut])
        assert read_or_refuse(path) is None


# --- Rate and channels ------------------------------------------------------------------------


@given(
    wave=waveforms,
    from_rate=st.sampled_from([8000, 22050, 32000, 44100, 48000, 12345]),
    to_rate=st.sampled_from([8000, 32000, 44100, 48000, 333]),
)
@settings(deadline=None, max_examples=60)
def test_resampled_length(wave, from_rate, to_rate):
    out = audio.resample(wave, from_rate, to_rate)
    expected = max(1, wave.shape[1] * to_rate // from_rate)
    assert out.shape == (wave.shape[0], expected)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


@pytest.mark.parametrize(("from_rate", "to_rate"), [(48000, 32000), (44100, 32000), (16000, 32000)])
def test_resampling_keeps_tones_below_the_band_and_removes_those_above(from_rate, to_rate):
    kept = audio.resample(
        np.concatenate([sine(1000, from_rate), sine(500, from_rate)]), from_rate, to_rate
    )
    expected = np.concatenate([sine(1000, to_rate), sine(500, to_rate)])
    middle = slice(1000, -1000)
    np.testing.assert_allclose(kept[:, middle], expected[:, middle], atol=1e-4)
    if from_rate > to_rate:
        removed = audio.resample(sine(18500, from_rate), from_rate, to_rate)
        assert rms(removed[:, middle]) < 1e-3


def test_same_rate_is_the_same_audio():
    wave = noise()
    np.testing.assert_array_equal(audio.resample(wave, 32000, 32000), wave)


@pytest.mark.parametrize("rates", [(0, 32000), (32000, 0), (-1, 32000)])
def test_rates_must_be_positive(rates):
    with pytest.raises(UserError, match="must be positive"):
        audio.resample(noise(), *rates)


@given(wave=waveforms, channels=st.integers(1, 4))
def test_channel_conversion(wave, channels):
    have = wave.shape[0]
    if channels > have > 1:
        with pytest.raises(UserError, match=f"{have} channels cannot become {channels}"):
            audio.convert_channels(wave, channels)
        return
    out = audio.convert_channels(wave, channels)
    assert out.shape == (channels, wave.shape[1])
    assert out.dtype == np.float32
    if channels == 1:
        np.testing.assert_allclose(out[0], wave.astype(np.float64).mean(0), atol=1e-6)
    elif have == 1:
        assert (out == wave).all()
    else:
        np.testing.assert_array_equal(out, wave[:channels])


def test_many_channels_are_mixed_before_they_grow(monkeypatch):
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.1, (16, 400)).astype(np.float32)
    mixed = audio.convert_audio(wave, 8000, 32000, 1)
    np.testing.assert_allclose(
        mixed, audio.resample(wave, 8000, 32000).mean(0, keepdims=True), atol=1e-6
    )
    monkeypatch.setattr("musicgen_jax.audio.samples.MAX_SAMPLES", 2000)
    assert audio.convert_audio(wave, 8000, 32000, 1).shape == (1, 1600)
    with pytest.raises(UserError, match="too long at 44100 Hz"):
        audio.convert_audio(wave, 8000, 44100, 1)


def test_no_channels_are_refused():
    with pytest.raises(UserError, match="at least 1"):
        audio.convert_channels(noise(), 0)


def test_convert_audio_does_both():
    wave = noise(2, 4800)
    out = audio.convert_audio(wave, 48000, 32000, 1)
    assert out.shape == (1, 3200)
    np.testing.assert_allclose(
        out, audio.resample(wave.mean(0, keepdims=True), 48000, 32000), atol=1e-6
    )


# --- Level ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.01, 5.0])
def test_peak(level):
    out = audio.normalize_audio(noise(level=level), 32000, "peak", peak_clip_headroom_db=3)
    np.testing.assert_allclose(np.abs(out).max(), 10 ** (-3 / 20), rtol=1e-6)
    np.testing.assert_allclose(
        out / out.max(), noise(level=level) / noise(level=level).max(), atol=1e-6
    )


def test_clip():
    wave = noise(level=1.0)
    out = audio.normalize_audio(wave, 32000, "clip", peak_clip_headroom_db=6)
    np.testing.assert_array_equal(
        out, np.clip(wave, -(10 ** (-6 / 20)), 10 ** (-6 / 20)).astype(np.float32)
    )


def test_rms_is_that_of_the_mean_of_channels():
    out = audio.normalize_audio(noise(), 32000, "rms")
    np.testing.assert_allclose(rms(out.mean(0)), 10 ** (-18 / 20), rtol=1e-5)
    loud = audio.normalize_audio(noise(), 32000, "rms", rms_headroom_db=-3)
    assert np.abs(loud).max() == 1.0  # clipped


@pytest.mark.parametrize("strategy", ["peak", "rms"])
def test_without_normalize_audio_only_gets_quieter(strategy):
    quiet, loud = noise(level=0.01), noise(level=2.0)
    same = audio.normalize_audio(quiet, 32000, strategy, normalize=False)
    np.testing.assert_array_equal(same, quiet)
    np.testing.assert_array_equal(
        audio.normalize_audio(loud, 32000, strategy, normalize=False),
        audio.normalize_audio(loud, 32000, strategy),
    )


@pytest.mark.parametrize("rate", [16000, 32000, 48000])
def test_loudness_strategy_reaches_its_target(rate):
    wave = noise(samples=2 * rate, level=0.01)
    out = audio.normalize_audio(wave, rate, "loudness", loudness_headroom_db=20)
    assert abs(audio.loudness(out, rate) + 20) < 1e-3
    default = audio.normalize_audio(wave, rate, "loudness")
    assert abs(audio.loudness(default, rate) + 14) < 0.05  # a few peaks are clipped


def test_loudness_strategy_measures_clipped_as_audiocraft_does():
    loud = sine(997, 32000)
    out = audio.normalize_audio(loud, 32000, "loudness")
    level = audio.loudness(loud, 32000, clip=True)
    np.testing.assert_allclose(out, loud * 10 ** ((-14 - level) / 20), atol=1e-6)


def test_loudness_compressor_is_tanh_before_the_clip():
    wave = noise(samples=32000, level=0.3)
    plain = audio.normalize_audio(wave, 32000, "loudness", loudness_headroom_db=30)
    gain = plain.max() / wave.max()
    squeezed = audio.normalize_audio(
        wave, 32000, "loudness", loudness_headroom_db=30, loudness_compressor=True
    )
    np.testing.assert_allclose(squeezed, np.tanh(gain * wave), atol=1e-6)


@pytest.mark.parametrize("strategy", audio.STRATEGIES)
def test_silence_and_short_audio(strategy):
    silence = np.zeros((2, 32000), np.float32)
    np.testing.assert_array_equal(audio.normalize_audio(silence, 32000, strategy), silence)
    short = noise(samples=100)
    assert audio.normalize_audio(short, 32000, strategy).shape == short.shape
    if strategy == "loudness":
        np.testing.assert_array_equal(audio.normalize_audio(short, 32000, strategy), short)
        quiet = noise(samples=32000, level=1e-3)
        np.testing.assert_array_equal(audio.normalize_audio(quiet, 32000, strategy), quiet)
        constant = np.full((1, 64000), 0.5, np.float32)  # not silent, and yet not heard
        out = audio.normalize_audio(constant, 32000, strategy)
        assert np.isfinite(out).all()


@given(wave=waveforms, strategy=st.sampled_from(audio.STRATEGIES), normalize=st.booleans())
@settings(deadline=None)
def test_any_audio_stays_finite_and_within_full_scale(wave, strategy, normalize):
    out = audio.normalize_audio(wave, 8000, strategy, normalize=normalize)
    assert out.dtype == np.float32
    assert out.shape == wave.shape
    assert np.abs(out).max() <= 1.0


def test_unknown_strategy():
    with pytest.raises(
        UserError, match=r"unknown strategy 'rm': use one of peak, clip, rms, loudness"
    ):
        audio.normalize_audio(noise(), 32000, "rm")


# --- Loudness ---------------------------------------------------------------------------------


def direct_form(x, numerator, denominator):
    """The textbook recursion, one sample at a time."""
    b, a = numerator / denominator[0], denominator / denominator[0]
    y = np.zeros_like(x)
    for n in range(len(x)):
        y[n] = b[0] * x[n]
        for k in (1, 2):
            if n >= k:
                y[n] += b[k] * x[n - k] - a[k] * y[n - k]
    return y


def biquad(wave, numerator, denominator, rate):
    stream = levels._Biquad(numerator, denominator, rate)
    return np.concatenate([*stream.push(wave), *stream.flush()], axis=1)


@pytest.mark.parametrize("design", [levels._treble_shelf, levels._high_pass])
def test_fft_filter_equals_the_recursion(design):
    rate = 4000  # chunks of 8 s: the 9 s below cross from one to the next
    wave = noise(1, 9 * rate).astype(np.float64) + 0.5
    numerator, denominator = design(rate)
    expected = direct_form(wave[0], numerator, denominator)
    np.testing.assert_allclose(biquad(wave, numerator, denominator, rate)[0], expected, atol=1e-12)


@pytest.mark.parametrize("rate", [32000, 44100, 48000])
def test_loudness_of_the_reference_tone(rate):
    # BS.1770: 997 Hz at full scale on one front channel is -3.01 LKFS; with the cookbook's filters
    # in place of the recommendation's it is off by 0.05.
    tone = sine(997, rate, 3.0)
    assert abs(audio.loudness(tone, rate) + 3.01) < 0.06
    assert abs(audio.loudness(0.1 * tone, rate) + 23.01) < 0.06
    assert abs(audio.loudness(np.repeat(tone, 2, 0), rate) - 0.0) < 0.06  # two channels: +3.01
    surround = np.concatenate([np.zeros_like(tone).repeat(3, 0), tone])
    assert abs(audio.loudness(surround, rate) + 3.01 - 10 * math.log10(1.41)) < 0.06


def test_gates_ignore_silence_and_quiet_passages():
    rate = 32000
    loud = noise(2, 8 * rate)
    for quiet in (0.0, 1e-4, 1e-2):
        mixed = np.concatenate([loud, quiet * noise(2, 8 * rate, seed=1)], axis=1)
        assert abs(audio.loudness(mixed, rate) - audio.loudness(loud, rate)) < 0.2
    half = np.concatenate([loud, 0.5 * loud], axis=1)  # 6 dB less passes the gate and counts
    assert audio.loudness(half, rate) < audio.loudness(loud, rate) - 1


def test_clip_as_torchaudio_does():
    rate = 32000
    quiet = 0.1 * sine(997, rate)
    assert audio.loudness(quiet, rate, clip=True) == audio.loudness(quiet, rate)
    loud = sine(997, rate)
    shelved = np.clip(biquad(loud, *levels._treble_shelf(rate), rate), -1, 1)
    expected = rms(np.clip(biquad(shelved, *levels._high_pass(rate), rate), -1, 1))
    measured = audio.loudness(loud, rate, clip=True)
    assert abs(measured - (20 * math.log10(expected) - 0.691)) < 0.01
    assert -0.5 < measured - audio.loudness(loud, rate) < -0.1


def test_no_loudness():
    assert audio.loudness(np.zeros((1, 32000)), 32000) == -math.inf
    assert audio.loudness(noise(samples=12799), 32000) == -math.inf
    assert audio.loudness(noise(samples=12800), 32000) > -40
    with pytest.raises(UserError, match="at most 5 channels"):
        audio.loudness(noise(6), 32000)
    with pytest.raises(UserError, match="above 3000 Hz"):
        audio.loudness(noise(), 3000)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("rate", [16000, 32000, 44100, 48000])
def test_loudness_equals_pyloudnorm(channels, rate):
    pyloudnorm = pytest.importorskip("pyloudnorm")
    wave = noise(channels, 4 * rate) * np.linspace(0, 1, 4 * rate, dtype=np.float32) ** 2
    expected = pyloudnorm.Meter(rate).integrated_loudness(wave.T.astype(np.float64))
    assert abs(audio.loudness(wave, rate) - expected) < 1e-3


# --- Imports ----------------------------------------------------------------------------------


def test_import_is_cheap():
    code = (
        "import sys, musicgen_jax.audio, musicgen_jax.storage.tokenizer; "
        "print([m for m in ('jax', 'soundfile', 'soxr', 'sentencepiece') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- Piece by piece -----------------------------------------------------------------------------


def write_in_pieces(path, wave, rate, strategy, sizes, folder):
    path.unlink(missing_ok=True)
    file = audio.GrowingFile(
        path, wave.shape[0], rate, strategy, samples=wave.shape[1], aside=folder / "aside.f32"
    )
    begin = 0
    for size in sizes:
        file.write(wave[:, begin : begin + size])
        begin += size
    file.write(wave[:, begin:])
    assert not path.exists(), "a file appears whole or not at all"
    file.finish()
    assert [entry.name for entry in folder.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("strategy", audio.STRATEGIES)
def test_a_file_written_in_pieces_is_the_file_written_at_once(tmp_path, strategy, suffix):
    rate = 4000
    loud = noise(2, 9 * rate, level=0.9)  # samples beyond full scale, and chunks of 8 s
    loud[:, : 2 * rate] *= 0.05
    for wave in (loud, 1e-4 * loud, loud[:, :500], 0 * loud):
        once, pieces = tmp_path / "a" / f"x{suffix}", tmp_path / "b" / f"x{suffix}"
        pieces.parent.mkdir(exist_ok=True)
        audio.write(once, wave, rate, strategy, loudness_compressor=True)
        write_in_pieces(pieces, wave, rate, strategy, [1, 100, 0, 7000], pieces.parent)
        assert once.read_bytes() == pieces.read_bytes()


def test_a_file_too_long_for_its_format_is_refused_at_once(tmp_path):
    make = lambda name: audio.GrowingFile(  # noqa: E731
        tmp_path / name, 2, 32000, "peak", samples=12 * 3600 * 32000, aside=tmp_path / "aside"
    )
    with pytest.raises(UserError, match=r"at most 4 GiB; write a \.flac"):
        make("x.wav")
    make("x.flac")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_told(tmp_path, monkeypatch):
    file = audio.GrowingFile(
        tmp_path / "x.wav", 1, 4000, "peak", samples=8000, aside=tmp_path / "aside"
    )
    file.write(noise(1, 8000))

    with open("/dev/full", "wb", buffering=0) as full:
        recorder = growing._Recorder
        monkeypatch.setattr(growing, "_Recorder", lambda file: recorder(full))
        with pytest.raises(UserError, match="No space left"):
            file.finish()
    assert [entry.name for entry in tmp_path.iterdir()] == ["aside"]


def test_pieces_must_be_finite(tmp_path):
    file = audio.GrowingFile(tmp_path / "x.wav", 1, 4000, "peak", samples=9, aside=tmp_path / "a")
    with pytest.raises(UserError, match="NaN or infinite"):
        file.write(np.full((1, 9), np.nan, np.float32))


# --- mp3 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    """12 s as mp3 with a variable bit rate: quiet first, so that an estimate is far off."""
    rate = 44100
    wave = noise(2, 12 * rate, level=0.2) * np.linspace(0, 1, 12 * rate, dtype=np.float32) ** 4
    path = tmp_path_factory.mktemp("mp3") / "song.mp3"
    form = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.5}
    with soundfile.SoundFile(path, "w", rate, 2, "MPEG_LAYER_III", **form) as file:
        file.write(wave.T)
    return path


def without_header(data: bytes) -> bytes:
    """An mp3 file as a recorder of streams would have it: its first frame holds the length."""
    place = data.index(b"\xff", 4)
    while data[place : place + 2] != data[:2]:
        place = data.index(b"\xff", place + 1)
    assert b"Xing" in data[:place]
    return data[place:]


ID3 = b"ID3\4\0\0\0\0\2\0" + b"\xff\xfb\x90\0" * 64  # a tag with something like frames inside


@pytest.mark.parametrize(
    ("change", "seconds"),
    [
        (lambda data: data, 12),
        (without_header, 12),
        (lambda data: ID3 + without_header(data) + b"TAG" + bytes(125), 12),
        (lambda data: b"junk" * 50 + without_header(data), 12),
        (lambda data: data + data, 24),
        (lambda data: data + ID3 + without_header(data), 24),
        (lambda data: data[: data.index(b"\xff", len(data) // 2)], None),
        (lambda data: data[:-7], 12),
    ],
)
def test_the_length_of_an_mp3_file_is_counted(song, tmp_path, change, seconds):
    path = tmp_path / "changed.mp3"
    path.write_bytes(change(song.read_bytes()))
    wave, rate = audio.read(path)
    header = audio.info(path)
    assert abs(header.frames - wave.shape[1]) < rate / 10
    if seconds:
        assert abs(wave.shape[1] / rate - seconds) < 0.1
    else:  # cut in the middle of its bytes: all that is there
        assert 6 < wave.shape[1] / rate < 12
    last = audio.read(path, start=wave.shape[1] / rate - 1)[0]
    assert rms(last) > 0.01, "the end is loud"


def test_an_mp3_file_by_another_name_is_counted_too(song, tmp_path):
    (tmp_path / "song").write_bytes(without_header(song.read_bytes()))
    wave, rate = audio.read(tmp_path / "song")
    assert abs(wave.shape[1] / rate - 12) < 0.1


def test_a_right_header_is_left_alone(song):
    expected = soundfile.read(song, dtype="float32")[0].T
    np.testing.assert_array_equal(audio.read(song)[0], expected)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_crash_the_counter(tmp_path, content, sync):
    path = tmp_path / "any.mp3"
    path.write_bytes((b"\xff\xfb\x90\0" if sync else b"") + content)
    with pytest.raises(UserError, match=r"cannot read .*any\.mp3") as caught:
        audio.read(path)
    assert "\n" not in str(caught.value)


# --- Names and headers --------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="names are text there")
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_a_name_that_is_not_text_is_read(tmp_path, song, suffix):
    path = tmp_path / f"caf\udce9{suffix}"
    if suffix == ".mp3":
        path.write_bytes(song.read_bytes())
    elif suffix == ".ogg":
        soundfile.write(os.fsencode(path), noise().T, 32000, format="OGG")
    else:
        audio.write(path, noise(), 32000)
    assert audio.read(path)[0].shape[0] == 2
    assert audio.info(path).channels == 2


def test_a_recording_that_was_cut_off_says_how_to_repair_it(tmp_path):
    path = audio.write(tmp_path / "x.wav", noise(), 32000)
    data = path.read_bytes()
    place = data.index(b"data") + 4
    path.write_bytes(data[:place] + bytes(4) + data[place + 4 :])
    with pytest.raises(UserError, match=r"recording was cut off .*ffmpeg"):
        audio.read(path)


def test_an_unknown_format_says_how_to_convert_it(tmp_path):
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom" + bytes(999))
    with pytest.raises(UserError, match=r"x\.m4a: not an audio file .*ffmpeg"):
        audio.read(tmp_path / "x.m4a")


def test_a_flac_file_that_is_cut_off_is_not_silently_shorter(tmp_path):
    path = audio.write(tmp_path / "x.flac", noise(samples=320_000), 32000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cut off after \d\.\d of 10\.0 s|not an audio file"):
        audio.read(path)
