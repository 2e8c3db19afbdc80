"""Decoding in pieces is decoding at once: any chunks, both edges, with and without an LSTM."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec import Encodec, streaming
from musicgen_jax.nn.encodec.streaming import StreamingDecoder, look_ahead
from tests.helpers.codecs import make_codec
from tests.helpers.tolerance import assert_close

# As the official codec, but small; odd and even ratios, kernels and dilations that do not fit.
SMALL = EncodecConfig(n_filters=2, ratios=(5, 2), dimension=6, n_q=3, bins=16, lstm=2)
ODD = dataclasses.replace(
    SMALL, ratios=(3, 7), kernel_size=4, last_kernel_size=5, n_residual_layers=3, lstm=1
)
NO_LSTM = dataclasses.replace(SMALL, lstm=0, pad_mode="constant", residual_kernel_size=5)
CAUSAL = dataclasses.replace(SMALL, causal=True)
CONFIGS = {"small": SMALL, "odd": ODD, "no lstm": NO_LSTM, "causal": CAUSAL}


offline = jax.jit(Encodec.decode)


@pytest.fixture(scope="module")
def codec() -> Encodec:
    return make_codec(SMALL)


def random_codes(frames: int, batch: int = 1, config: EncodecConfig = SMALL) -> np.ndarray:
    rng = np.random.default_rng(frames)
    return rng.integers(0, config.bins, (batch, config.n_q, frames), np.int32)


def decode(decoder: StreamingDecoder, codes: np.ndarray, chunks: Sequence[int]) -> np.ndarray:
    parts, begin = [], 0
    for chunk in chunks:
        parts.append(decoder.push(codes[:, :, begin : begin + chunk]))
        begin += chunk
    assert begin == codes.shape[2]
    return np.concatenate([*parts, decoder.flush()], axis=2)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_stream_is_the_offline_decode(name):
    config = CONFIGS[name]
    codec, codes = make_codec(config), random_codes(61, 2, config)
    whole = np.asarray(offline(codec, codes))
    decoder = StreamingDecoder(codec, block=7)
    assert_close(decode(decoder, codes, [1] * 61), whole, relative=1e-5)
    for total in (60, 41):  # the right edge lies elsewhere in its window
        expected = offline(codec, codes[:, :, :total])
        streamed = decode(StreamingDecoder(codec, block=7), codes[:, :, :total], [total])
        assert_close(streamed, expected, relative=1e-5)


def test_every_frame_shows_in_what_is_compared(codec):
    """Guards the test above: seams and edges would be seen, the numbers are no zeros."""
    codes = random_codes(61)
    whole = np.asarray(offline(codec, codes))[0, 0].reshape(61, -1)
    assert np.abs(whole).max(axis=1).min() > 1e-2 * np.abs(whole).max()
    changed = codes.copy()
    changed[0, :, 20] = (changed[0, :, 20] + 1) % SMALL.bins
    difference = np.abs(np.asarray(offline(codec, changed))[0, 0].reshape(61, -1) - whole)
    assert difference[:15].max() == 0
    assert difference[30:].max() > 1e-4 * np.abs(whole).max(), "the LSTM remembers"


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_how_codes_are_cut_into_pushes_changes_no_bit(codec, data):
    codes = random_codes(50)
    chunks = data.draw(st.lists(st.integers(0, 20), max_size=12).filter(lambda c: sum(c) <= 50))
    expected = decode(StreamingDecoder(codec, block=9), codes, [50])
    streamed = decode(StreamingDecoder(codec, block=9), codes, [*chunks, 50 - sum(chunks)])
    np.testing.assert_array_equal(streamed, expected)


@pytest.mark.parametrize("frames", [1, 2, 3, 12])
def test_a_stream_shorter_than_a_window(codec, frames):
    codes = random_codes(frames)
    streamed = decode(StreamingDecoder(codec, block=30), codes, [1] * frames)
    assert_close(streamed, offline(codec, codes), relative=1e-5)


def test_an_empty_stream_is_no_audio(codec):
    decoder = StreamingDecoder(codec, block=5)
    assert decoder.push(random_codes(0)).shape == (1, 1, 0)
    assert decoder.flush().shape == (1, 1, 0)


def test_audio_comes_as_soon_as_the_codes_behind_it_are_known(codec):
    decoder, block, ahead = StreamingDecoder(codec, block=4), 4, look_ahead(SMALL)
    codes = random_codes(100)
    for frame in range(100):
        audio = decoder.push(codes[:, :, frame : frame + 1])
        assert audio.shape[2] == 0 or frame < 30 or audio.shape[2] == block * SMALL.hop_length
        assert decoder.emitted <= max(0, decoder.received - ahead)
        if frame > 30:
            assert decoder.emitted >= decoder.received - ahead - block
    assert look_ahead(dataclasses.replace(SMALL, causal=True)) < ahead


def test_one_compilation_and_bounded_memory_whatever_the_length(codec):
    decoder = StreamingDecoder(codec, block=6)
    codes = random_codes(40)
    decoder.push(codes)
    jitted: Any = streaming._decode_window
    compiled, held = jitted._cache_size(), len(jax.live_arrays())
    for _ in range(20):
        decoder.push(codes)
        assert decoder._codes is not None
        assert decoder._codes.shape[2] < 2 * 40
    assert decoder.received == 840
    assert len(jax.live_arrays()) <= held
    decoder.flush()
    assert jitted._cache_size() == compiled


def test_a_fork_goes_its_own_way(codec):
    codes, other = random_codes(60), random_codes(30)
    decoder = StreamingDecoder(codec, block=5)
    head = decoder.push(codes[:, :, :30])
    fork = decoder.fork()
    tail = np.concatenate([fork.push(other), fork.flush()], axis=2)
    branch = np.concatenate([codes[:, :, :30], other], axis=2)
    assert_close(np.concatenate([head, tail], axis=2), offline(codec, branch), relative=1e-5)
    rest = np.concatenate([decoder.push(codes[:, :, 30:]), decoder.flush()], axis=2)
    assert_close(np.concatenate([head, rest], axis=2), offline(codec, codes), relative=1e-5)


def test_what_cannot_stream_is_refused(codec):
    with pytest.raises(ValueError, match="normalises over time"):
        StreamingDecoder(make_codec(dataclasses.replace(SMALL, norm="time_group_norm")), block=5)
    with pytest.raises(ValueError, match="block"):
        StreamingDecoder(codec, block=0)
    decoder = StreamingDecoder(codec, block=5)
    decoder.flush()
    with pytest.raises(ValueError, match="ended"):
        decoder.push(random_codes(1))
