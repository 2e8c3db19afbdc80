"""Pieces longer than the model's window: which windows, their joins, going on after a break."""

import dataclasses
import itertools
import json
from typing import Any

import jax
import numpy as np
import pytest

from musicgen_jax import testing
from musicgen_jax.errors import UserError
from musicgen_jax.generation import joins, program
from musicgen_jax.generation.decode import example_keys, generate_codes
from musicgen_jax.generation.joins import crossfade, decode_windows, overlap_frames
from musicgen_jax.generation.piece import generate_piece
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.windows import Layout, Window, assemble, window_keys
from musicgen_jax.model import MusicGen
from musicgen_jax.nn.encodec import streaming
from musicgen_jax.nn.encodec.streaming import look_ahead
from tests.helpers import shallow
from tests.helpers.tolerance import assert_close

SHORT = dataclasses.replace(shallow.TEXT, max_duration=1.0, name="short")
WINDOW, STRIDE, BOOKS, CARD = 50, 30, 4, 37  # frames; stride is three fifths


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return testing.random_model(SHORT)


def original_windows(total: int, window: int, stride: int, prompt: int) -> list[tuple[int, ...]]:
    """audiocraft's loop over windows, in frames: (offset, frames to generate, prompt)."""
    if total <= window:
        return [(0, total, prompt)]
    calls, offset = [], 0
    while offset + prompt < total:
        length = min(total - offset, window)
        calls.append((offset, length, prompt))
        prompt = max(0, length - stride)
        offset += stride
    return calls


# --- Windows --------------------------------------------------------------------------------------


def test_windows_are_those_of_the_original_loop():
    for total, stride, prompt in itertools.product(
        range(1, 140, 3), (1, 7, 18, 29), (0, 1, 20, 29)
    ):
        if prompt < min(total, 30):
            windows = Layout(total, window=30, stride=stride, prompt=prompt)
            expected = original_windows(total, 30, stride, prompt)
            assert [(w.start, w.length, w.prompt) for w in windows] == expected
            assert windows[-1].end == total


def test_official_windows_of_90_seconds():
    windows = Layout(4500, window=1500, stride=900)
    assert [w.start for w in windows] == [0, 900, 1800, 2700, 3600]
    assert [w.length for w in windows] == [1500, 1500, 1500, 1500, 900]
    assert [w.prompt for w in windows] == [0, 600, 600, 600, 600]


def test_an_overlap_is_generated_once_more_but_never_what_was_given():
    windows = Layout(130, window=50, stride=30, prompt=45, overlap=8)
    assert [w.overlap for w in windows] == [0, 5, 8, 8]
    assert [w.prompt for w in windows] == [45, 15, 12, 12]
    assert [(w.start, w.end) for w in windows] == [(0, 50), (30, 80), (60, 110), (90, 130)]


@pytest.mark.parametrize("prompt_frames", [0, 13])
def test_codes_are_those_of_one_generation_per_window(model, prompt_frames):
    """The original's loop, restated: each window a call of its own, cut and put together."""
    prompt = np.random.default_rng(0).integers(0, CARD, (2, BOOKS, prompt_frames))
    given = prompt if prompt_frames else None
    out = model.generate(["bells", "drums"], duration=2.5, seed=3, prompt_codes=given)
    condition = model.text_condition(["bells", "drums"])
    keys, parts, context = example_keys(3, 2), [prompt], given
    for number, (_, length, known) in enumerate(
        original_windows(125, WINDOW, STRIDE, prompt_frames)
    ):
        codes = np.asarray(
            generate_codes(
                model.lm,
                condition,
                num_frames=length,
                prompt=context,
                keys=window_keys(keys, number),
            )
        )
        parts.append(codes[:, :, known:])
        context = codes[:, :, STRIDE:]
    np.testing.assert_array_equal(out.codes, np.concatenate(parts, axis=2))
    assert out.audio.shape == (2, 1, 125 * 80)
    assert_close(out.audio, model.decode(out.codes), relative=1e-5)


def test_the_window_that_fills_the_model_is_as_without_windows(model):
    whole = testing.random_model(shallow.TEXT)  # the same weights, a longer window
    expected = whole.generate(["bells"], duration=1.0, seed=5)
    out = model.generate(["bells"], duration=1.0, seed=5)
    np.testing.assert_array_equal(out.codes, expected.codes)
    np.testing.assert_array_equal(out.audio, expected.audio)
    longer = model.generate(["bells"], duration=1.02, seed=5)
    assert longer.codes.shape[2] == 51
    np.testing.assert_array_equal(longer.codes[:, :, :50], expected.codes)


def test_each_window_has_its_own_key_and_its_own_condition(model):
    keys = example_keys([1, 2], 2)
    seen = {np.asarray(jax.random.key_data(window_keys(keys, n))).tobytes() for n in range(50)}
    assert len(seen) == 50
    np.testing.assert_array_equal(
        jax.random.key_data(window_keys(keys, 0)), jax.random.key_data(keys)
    )
    offsets = []

    def condition_at(offset, texts):
        offsets.append(offset)
        return model.text_condition(["bells" if offset < 1 else "drums"])

    request = Request(config=model.config, descriptions=["x"], duration=2.5)
    out = generate_piece(model.parts, request, condition_at)
    assert offsets == [0.0, 0.6, 1.2, 1.8]
    plain = model.generate(["bells"], duration=2.5)
    np.testing.assert_array_equal(out.codes[:, :, :80], plain.codes[:, :, :80])
    assert (out.codes[:, :, 80:] != plain.codes[:, :, 80:]).any()


def test_stride_changes_the_context(model):
    plain = model.generate(["x"], duration=2.0, use_sampling=False)
    same = model.generate(["x"], duration=2.0, use_sampling=False, extend_stride=0.6)
    np.testing.assert_array_equal(plain.codes, same.codes)
    other = model.generate(["x"], duration=2.0, use_sampling=False, extend_stride=0.9)
    assert other.codes.shape == plain.codes.shape
    assert (other.codes != plain.codes).any()


def test_progress_counts_over_the_whole_piece(model):
    calls = []
    model.generate(["x"], duration=2.5, progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {50 + 3 * 4 + 3 * 25}
    assert list(done) == sorted(set(done))
    assert done[-1] == totals[0]


def test_a_long_piece_compiles_nothing_that_a_shorter_one_did_not(model):
    def compiled():
        jitted: list[Any] = [program._start, program._advance, streaming._decode_window]
        return [function._cache_size() for function in jitted]

    def ignore(audio):
        pass

    model.generate(["x"], duration=8.0, on_audio=ignore)
    before, arrays = compiled(), len(jax.live_arrays())
    for duration in (9.1, 9.3, 9.9, 24.0):
        out = model.generate(["x"], duration=duration, on_audio=ignore)
        assert out.audio.shape == (1, 1, 0)
        assert out.codes.shape[2] == int(duration * 50)
    assert compiled() == before
    assert len(jax.live_arrays()) <= arrays, "something on the device grew with the duration"


# --- Streaming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("join", joins.JOINS)
def test_a_stream_is_the_audio_of_generate(model, join):
    settings = {"duration": 2.5, "seed": 2, "join": join}
    whole = model.generate(["bells", None], **settings).audio
    chunks = list(model.stream(["bells", None], chunk_seconds=0.2, **settings))
    assert_close(np.concatenate(chunks, axis=2), whole, relative=1e-5)
    assert all(chunk.size for chunk in chunks)
    assert len(chunks) > 6


def test_the_first_audio_comes_well_before_the_end(model):
    calls = []
    progress = lambda *call: calls.append(call)  # noqa: E731
    stream = model.stream(["bells"], duration=1.0, chunk_seconds=0.2, progress=progress)
    assert not calls
    first = next(stream)
    assert first.shape[2] >= 10 * 80
    assert calls[-1][0] < calls[-1][1] / 2
    stream.close()


def test_stereo_streams(tmp_path):
    config = dataclasses.replace(shallow.STEREO, max_duration=1.0)
    stereo = testing.random_model(config)
    chunks = list(stereo.stream(["bells"], duration=1.5, chunk_seconds=0.2))
    audio = np.concatenate(chunks, axis=2)
    codes = stereo.generate(["bells"], duration=1.5).codes
    assert audio.shape == (1, 2, 75 * 80)
    assert_close(audio, stereo.decode(codes), relative=1e-5)


def test_a_stream_checks_its_arguments_at_once(model):
    for settings in ({"chunk_seconds": 0}, {"chunk_seconds": "1"}, {"duration": -1}, {"join": "x"}):
        with pytest.raises(UserError):
            model.stream(["x"], **settings)


# --- Joins ----------------------------------------------------------------------------------------


def test_crossfade_is_the_windows_outside_and_their_mixture_inside(model):
    out = model.generate(["bells"], duration=2.0, seed=4, join="crossfade")
    overlap = overlap_frames("crossfade", WINDOW, STRIDE, 50.0)
    assert overlap == 5
    windows = Layout(100, window=WINDOW, stride=STRIDE, overlap=overlap)
    assert [w.end for w in windows] == [50, 80, 100]
    assert out.audio.shape == (1, 1, 100 * 80)
    hard = model.generate(["bells"], duration=1.0, seed=4)
    np.testing.assert_array_equal(out.codes[:, :, :45], hard.codes[:, :, :45])
    assert (out.codes[:, :, 45:50] != hard.codes[:, :, 45:50]).any()
    # What the later windows wrote, as one row, is what is heard outside the fades: up to where
    # the codec, which looks ahead, could see the other ending.
    new, old = (np.asarray(model.decode(codes)) for codes in (out.codes, hard.codes))
    ahead = look_ahead(SHORT.encodec)
    heard = lambda audio, *frames: audio[:, :, slice(*(80 * frame for frame in frames))]  # noqa: E731
    for frames in ((0, 45 - ahead), (50, 75 - ahead), (80, 100)):
        assert_close(heard(out.audio, *frames), heard(new, *frames), relative=1e-4)
    assert_close(heard(out.audio, 0, 45), heard(old, 0, 45), relative=1e-4)
    mixed = crossfade(heard(old, 45, 50), heard(new, 45, 50), SHORT.sample_rate)
    assert_close(heard(out.audio, 45, 50), mixed, relative=1e-4)
    for other in (old, new):
        difference = np.abs(heard(out.audio, 45, 50) - heard(other, 45, 50))
        assert difference.max() > 0.01 * np.abs(new).max()


def test_a_fade_keeps_the_level():
    rng = np.random.default_rng(0)
    old, new = rng.standard_normal((2, 1, 2, 4000)).astype(np.float32)
    np.testing.assert_allclose(crossfade(old, old, 4000), old, atol=1e-5)
    power = np.square(crossfade(old, new, 4000)).reshape(-1, 500).mean(axis=1)
    np.testing.assert_allclose(power, 1, atol=0.25)
    mixed = crossfade(old, new, 4000)
    assert_close(mixed[:, :, :4], old[:, :, :4], relative=0.01)
    assert_close(mixed[:, :, -4:], new[:, :, -4:], relative=0.01)
    assert np.abs(crossfade(old * 0, new * 0, 4000)).max() == 0


def test_overlaps_fit_between_two_joins():
    assert overlap_frames("hard", 1500, 900, 50) == 0
    assert overlap_frames("crossfade", 1500, 900, 50) == 50
    for window, stride in itertools.product(range(2, 60), range(1, 59)):
        if stride < window:
            overlap = overlap_frames("crossfade", window, stride, 50)
            assert overlap <= stride
            assert stride + overlap < window


@pytest.mark.parametrize("stride", [3, 10, 30])
def test_fades_close_together_lose_no_sample(model, stride):
    """Whatever the stride: joins come in order, and every sample once."""
    overlap = overlap_frames("crossfade", WINDOW, stride, 50)
    windows = Layout(90, window=WINDOW, stride=stride, overlap=overlap)
    rng = np.random.default_rng(0)
    same = rng.integers(0, CARD, (1, BOOKS, 90), np.int32)
    pieces = []
    for window in windows:
        begin = window.start + window.prompt
        for first in range(begin, window.end, 4):
            pieces.append((window, same[:, :, first : min(first + 4, window.end)]))
    audio = list(decode_windows(model.encodec, windows, iter(pieces), channels=1, block=7))
    whole = np.asarray(model.decode(same))
    # Both sides of each fade hold the same codes: nothing but the look-ahead at an end differs.
    joined = np.concatenate(audio, axis=2)
    assert joined.shape == whole.shape
    np.testing.assert_array_equal(assemble(pieces), same)
    far = np.ones(90 * 80, bool)
    for window in windows[1:]:
        end = windows[window.number - 1].end
        far[(end - 6) * 80 : end * 80] = False
    assert_close(joined[0, 0, far], whole[0, 0, far], relative=1e-4)


# --- Going on -------------------------------------------------------------------------------------


class Break(Exception):
    pass


@pytest.mark.parametrize("join", joins.JOINS)
def test_a_generation_goes_on_bit_for_bit(model, tmp_path, join):
    settings = {"duration": 2.5, "seed": 8, "join": join}
    expected = model.generate(["bells", "drums"], **settings)

    def break_off(done, total):
        if done > 0.7 * total:
            raise Break

    folder = tmp_path / "partial"
    with pytest.raises(Break):
        model.generate(["bells", "drums"], **settings, checkpoint=folder, progress=break_off)
    finished = sorted(folder.glob("window-*.npy"))
    assert [file.name for file in finished] == ["window-00000.npy", "window-00001.npy"]
    (folder / ".0123.part").write_bytes(b"cut off")
    calls = []
    out = model.generate(
        ["bells", "drums"],
        **settings,
        checkpoint=folder,
        progress=lambda *call: calls.append(call),
    )
    np.testing.assert_array_equal(out.codes, expected.codes)
    np.testing.assert_array_equal(out.audio, expected.audio)
    assert calls[0][0] > 40, "a finished window was generated again"
    assert calls[-1][0] == calls[-1][1]


def test_only_the_same_generation_goes_on(model, tmp_path):
    folder, settings = tmp_path / "partial", {"duration": 1.5, "checkpoint": tmp_path / "partial"}
    model.generate(["bells"], **settings)
    cases = [
        ((["drums"], settings), "started with descriptions"),
        ((["bells"], settings | {"duration": 1.6}), "started with duration 1.5, not 1.6"),
        ((["bells"], settings | {"seed": 1}), "started with seed 0, not 1"),
        ((["bells"], settings | {"temperature": 0.5}), "started with temperature 1.0, not 0.5"),
        (
            (["bells"], settings | {"join": "crossfade"}),
            "started with join 'hard', not 'crossfade'",
        ),
        ((["bells"], settings | {"extend_stride": 0.5}), "started with windows"),
        ((["bells"], settings | {"prompt_codes": np.ones((1, 4, 3), int)}), "different prompt"),
    ]
    for (texts, other), message in cases:
        with pytest.raises(UserError, match=message) as caught:
            model.generate(texts, **other)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="different model"):
        testing.random_model(SHORT, seed=1).generate(["bells"], **settings)
    assert json.loads((folder / "settings.json").read_text())["descriptions"] == ["bells"]


def test_a_prompt_that_no_duration_has_room_for_must_be_cut(model):
    codes = np.ones((1, 4, 60), int)  # the window has 50
    for duration in (0.5, 5.0):
        with pytest.raises(UserError, match=r"shorter than the model's window of 1 s; cut it"):
            model.generate(["bells"], duration=duration, prompt_codes=codes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("window-00000.npy", b"garbage", "window-00000.npy is damaged"),
        ("window-00000.npy", b"", "window-00000.npy is damaged"),
        ("window-00000.npy", bytes(10**6), "window-00000.npy is damaged"),
        ("settings.json", b"{", "settings.json is not readable JSON"),
        ("settings.json", b"[]", "settings.json is not readable JSON"),
        ("settings.json", None, "settings.json is missing"),
    ],
)
def test_a_broken_checkpoint_is_refused(model, tmp_path, name, content, message):
    model.generate(["bells"], duration=1.2, checkpoint=tmp_path / "x")
    file = tmp_path / "x" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        model.generate(["bells"], duration=1.2, checkpoint=tmp_path / "x")


def test_a_pickle_or_other_codes_are_refused(model, tmp_path):
    model.generate(["bells"], duration=1.2, checkpoint=tmp_path)
    file = tmp_path / "window-00000.npy"
    good = np.load(file)
    for bad in (good.astype(object), good[:, :2], good.astype(np.int64), good + CARD):
        np.save(file, bad, allow_pickle=True)
        with pytest.raises(UserError, match="is damaged"):
            model.generate(["bells"], duration=1.2, checkpoint=tmp_path)


def test_a_window_may_stand_alone():
    assert Window(2, 60, 40, 20).end == 100
