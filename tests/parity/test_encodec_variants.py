"""The 24 and 48 kHz EnCodecs against transformers, random weights: codes, levels, waveforms."""

import numpy as np
import pytest
from flax import nnx

from musicgen_jax.codec import Codec
from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.encodec.segments import segments
from tests.helpers.tolerance import assert_close
from tests.parity.encodec_weights import from_transformers

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.goldens import make_codec_goldens  # noqa: E402

KINDS, OUR_SIZES = make_codec_goldens.KINDS, make_codec_goldens.OUR_SIZES
noise, reference = make_codec_goldens.noise, make_codec_goldens.reference


def make_pair(kind):
    """The same random codec in both libraries."""
    theirs = make_codec_goldens.make_model(kind)
    config = EncodecConfig(**OUR_SIZES, **KINDS[kind][1])
    assert len(theirs.quantizer.layers) == config.n_q
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Encodec(config, rngs=nnx.Rngs(0))), nnx.Param)
    return theirs, Codec(nnx.merge(graphdef, from_transformers(theirs, config)), kind)


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    return make_pair(request.param)


def check(pair, width, bandwidth):
    theirs, ours = pair
    audio = noise(ours.channels, width)
    codes, scales, wave = reference(theirs, audio, bandwidth)
    encoded = ours.encode(audio, ours.sample_rate, bandwidth)
    decoded = ours.decode(encoded)
    np.testing.assert_array_equal(encoded.codes, np.concatenate(codes, axis=2))
    assert width < 100 or min(len(np.unique(book)) for book in encoded.codes[0]) > 4
    if ours.config.normalize:
        assert_close(encoded.scales, np.stack(scales, axis=1), 1e-6, "levels")
    else:
        assert encoded.scales is None
    assert encoded.length == width
    assert_close(decoded, wave, what="waveform")


# Segments of 200 samples at "48 kHz" start every 180: shorter than a frame, less than a segment,
# one and the overlap behind it, a first one that is short itself, several, the last two short.
@pytest.mark.parametrize(
    ("pair", "width"),
    [
        *(("24 kHz", width) for width in (4, 113, 300)),
        ("24 kHz, half trimmed", 112),
        *(("48 kHz", width) for width in (113, 200, 190, 500, 545)),
    ],
    indirect=["pair"],
)
def test_equal_codes_levels_and_waveforms(pair, width):
    check(pair, width, pair[0].config.target_bandwidths[-1])


@pytest.mark.parametrize("pair", ["24 kHz", "48 kHz"], indirect=True)
def test_a_single_sample(pair):
    theirs, ours = pair
    audio = noise(ours.channels, 1)
    codes, _, wave = reference(theirs, audio, None)
    latents = ours.encodec.encoder(audio.swapaxes(1, 2))
    if ours.config.normalize:  # [C, 1] looks transposed to the public method
        scale = np.abs(audio.mean(1)) + 1e-8
        latents = ours.encodec.encoder((audio / scale[:, None]).swapaxes(1, 2))
        out = ours.encodec.decode(codes[0]) * scale[:, None]
    else:
        out = ours.encodec.decode(codes[0])
    np.testing.assert_array_equal(ours.encodec.quantizer.encode(latents), codes[0])
    assert_close(out[..., :1], wave)


@pytest.mark.parametrize("pair", ["24 kHz"], indirect=True)
def test_fewer_books_at_a_lower_bandwidth(pair):
    theirs, ours = pair
    check(pair, 113, 0.3)
    books = theirs.quantizer.get_num_quantizers_for_bandwidth(0.3)
    assert ours.config.num_books(0.3) == books == 2


@pytest.mark.parametrize(("pair", "width"), [("24 kHz", 113), ("48 kHz", 560)], indirect=["pair"])
def test_whole_clips_of_the_public_methods(pair, width):
    """As above, through transformers' own encode and decode, where these can."""
    theirs, ours = pair
    audio = noise(ours.channels, width)
    bandwidth = theirs.config.target_bandwidths[-1]
    with torch.no_grad():
        out = theirs.encode(torch.from_numpy(audio), bandwidth=bandwidth)
        wave = theirs.decode(
            out.audio_codes, out.audio_scales, last_frame_pad_length=out.last_frame_pad_length
        ).audio_values
    encoded = ours.encode(audio, ours.sample_rate, bandwidth)
    start = 0
    for theirs_codes, segment in zip(
        out.audio_codes.numpy(), segments(ours.config, width), strict=True
    ):
        mine = encoded.codes[:, :, start : start + segment.frames]
        np.testing.assert_array_equal(mine, theirs_codes[:, :, : segment.frames])
        start += segment.frames
    assert_close(ours.decode(encoded), wave.numpy()[..., :width])
