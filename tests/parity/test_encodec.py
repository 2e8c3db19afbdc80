"""EnCodec against transformers, random weights: equal codes, equal waveforms."""

import jax
import numpy as np
import pytest
from flax import nnx

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.shapes import module_shapes
from tests.helpers.tolerance import assert_close
from tests.parity.encodec_weights import from_transformers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.goldens import make_codec_goldens  # noqa: E402

run = jax.jit(lambda part, x: part(x))
encode, decode = jax.jit(Encodec.encode), jax.jit(Encodec.decode)
RATIOS = {"hop 640": (8, 5, 4, 4), "hop 15": (5, 3), "hop 6": (3, 2)}


def make_pair(ratios, lstm=2, residual_layers=1, seed=0):
    """The same random codec in both libraries."""
    torch.manual_seed(seed)
    config = transformers.EncodecConfig(
        target_bandwidths=[32000 / float(np.prod(ratios)) * 4 * 5 / 1000],
        sampling_rate=32000,
        audio_channels=1,
        num_filters=4,
        hidden_size=12,
        codebook_dim=12,
        codebook_size=32,
        upsampling_ratios=list(ratios),
        num_residual_layers=residual_layers,
        num_lstm_layers=lstm,
        use_causal_conv=False,
        use_conv_shortcut=False,
        norm_type="weight_norm",
        normalize=False,
        pad_mode="reflect",
    )
    theirs = transformers.EncodecModel(config).eval()
    make_codec_goldens.randomize(theirs)
    ours = EncodecConfig(
        n_filters=4,
        ratios=tuple(ratios),
        dimension=12,
        n_q=len(theirs.quantizer.layers[:4]),
        bins=32,
        n_residual_layers=residual_layers,
        lstm=lstm,
    )
    graphdef, _ = nnx.split(module_shapes(Encodec, ours), nnx.Param)
    return theirs, nnx.merge(graphdef, from_transformers(theirs, ours))


@pytest.mark.parametrize("width", [1, 639, 640, 641, 7001])
def test_official_ratios_give_equal_codes_and_waveforms(width):
    check(make_pair(RATIOS["hop 640"]), width)


@pytest.mark.parametrize("name", ["hop 15", "hop 6"])
@pytest.mark.parametrize("width", [1, 2, 14, 15, 16, 31, 1000])
def test_odd_ratios_give_equal_codes_and_waveforms(name, width):
    check(make_pair(RATIOS[name], seed=1), width)


def test_several_residual_layers_and_one_lstm_layer():
    check(make_pair((4, 3), lstm=1, residual_layers=3, seed=2), 500)


def check(pair, width):
    theirs, ours = pair
    rng = np.random.default_rng(width)
    audio = rng.standard_normal((2, 1, width)).astype(np.float32)
    n_q = ours.config.n_q
    with torch.no_grad():
        latents = theirs.encoder(torch.from_numpy(audio))
        residual, codes = latents, []
        for layer in theirs.quantizer.layers[:n_q]:
            index = layer.encode(residual)
            residual = residual - layer.decode(index)
            codes.append(index.numpy())
        codes = np.stack(codes, 1)  # [B, K, T]
        summed = sum(
            layer.decode(torch.from_numpy(codes[:, k]))
            for k, layer in enumerate(theirs.quantizer.layers[:n_q])
        )
        waveform = theirs.decoder(summed).numpy()
    ours_latents = np.asarray(run(ours.encoder, audio.swapaxes(1, 2))).swapaxes(1, 2)
    assert_close(ours_latents, latents.numpy(), what="latents")
    np.testing.assert_array_equal(encode(ours, audio), codes)
    if codes.size >= 80:  # enough to see that they follow the sound
        assert min(len(np.unique(codes[:, k])) for k in range(n_q)) > 4
    assert_close(decode(ours, codes.astype(np.int32)), waveform, what="waveform")
