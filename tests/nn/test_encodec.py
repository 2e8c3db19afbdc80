"""The codec: lengths, batches, padding rules, and the numbers of the PyTorch code (goldens)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from musicgen_jax.config import ENCODEC_32KHZ, EncodecConfig
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.encodec.conv import ConvTranspose1d, pad1d, pad_amounts
from musicgen_jax.nn.encodec.lstm import LSTM
from musicgen_jax.nn.shapes import module_shapes
from tests.helpers.codecs import make_codec
from tests.helpers.tolerance import assert_close

SMALL = EncodecConfig(n_filters=4, ratios=(5, 4), dimension=8, n_q=3, bins=16, lstm=1)


encode = jax.jit(Encodec.encode)


@pytest.fixture(scope="module")
def codec():
    return make_codec(SMALL)


@pytest.mark.parametrize("width", [1, 2, 3, 19, 20, 21, 200])
def test_frames_are_the_ceiling_of_samples_over_hop(codec, width):
    codes = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct((2, 1, width), jnp.float32))
    assert codes.shape == (2, 3, -(-width // SMALL.hop_length))
    assert codes.dtype == jnp.int32
    audio = jax.eval_shape(codec.decode, codes)
    assert audio.shape == (2, 1, codes.shape[2] * SMALL.hop_length)


@pytest.mark.parametrize("width", [1, 21])
def test_all_of_a_clip_is_finite_whatever_its_length(codec, width):
    audio = np.random.default_rng(width).standard_normal((1, 1, width)).astype(np.float32)
    decoded = jax.jit(Encodec.decode)(codec, encode(codec, audio))
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() > 0


def test_rows_do_not_depend_on_their_batch(codec):
    audio = np.random.default_rng(0).standard_normal((3, 1, 333)).astype(np.float32)
    together = encode(codec, audio)
    for row in range(3):
        np.testing.assert_array_equal(encode(codec, audio[row : row + 1])[0], together[row])


@pytest.mark.parametrize("shape", [(1, 100), (1, 2, 100), (1, 1, 0)])
def test_encode_refuses_other_shapes(codec, shape):
    with pytest.raises(ValueError, match="audio must be"):
        codec.encode(jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 7), (1, 4, 7), (1, 3, 0)])
def test_decode_refuses_other_shapes(codec, shape):
    with pytest.raises(ValueError, match="codes must be"):
        codec.decode(jnp.zeros(shape, jnp.int32))


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 50),
    kernel=st.integers(1, 16),
    stride=st.integers(1, 8),
)
def test_padding_gives_one_window_per_stride(length, kernel, stride):
    kernel = max(kernel, stride)
    left, right = pad_amounts(length, kernel, stride)
    windows = (length + left + right - kernel) / stride + 1
    assert windows == -(-length // stride)
    assert left >= 0
    assert right >= 0


def test_reflection_longer_than_the_signal_meets_zeros():
    # The worked example of the reference implementation: L = 3, three samples on either side.
    padded = pad1d(jnp.array([1.0, 2.0, 3.0])[None, :, None], 3, 3, "reflect")
    np.testing.assert_array_equal(padded[0, :, 0], [0, 3, 2, 1, 2, 3, 0, 3, 2])


@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8])
def test_phase_split_upsampling_equals_its_definition(stride):
    layer = ConvTranspose1d(3, 2, stride, rngs=nnx.Rngs(1))
    x = np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32)
    full = np.zeros((2, 8 * stride, 2))
    for t in range(7):
        for j in range(2 * stride):
            full[:, t * stride + j] += x[:, t] @ np.asarray(layer.weight[...][j])
    right = stride // 2
    expected = full[:, stride - right : full.shape[1] - right] + np.asarray(layer.bias[...])
    assert_close(layer(jnp.asarray(x)), expected)


@pytest.mark.parametrize("stride", [2, 5])
def test_derivatives_of_upsampling(stride):
    """First and second, with respect to input and parameters, forwards and backwards."""
    graphdef, params = nnx.split(ConvTranspose1d(3, 2, stride, rngs=nnx.Rngs(1)), nnx.Param)
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)

    apply = jax.jit(lambda params, x: jnp.sin(nnx.merge(graphdef, params)(x)))
    check_grads(apply, (params, x), order=2, atol=1e-2, rtol=1e-2)


def written_out(params, x):
    """The LSTM as PyTorch defines it, frame by frame, and nothing about its derivatives."""
    y = x
    for layer in nnx.to_pure_dict(params)["lstm"].values():
        hidden = cell = jnp.zeros_like(x[:, 0])
        frames = []
        for t in range(x.shape[1]):
            gates = (
                y[:, t] @ layer["weight_ih"].T + hidden @ layer["weight_hh"].T + layer["bias"][None]
            )
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            frames.append(hidden)
        y = jnp.stack(frames, axis=1)
    return x + y


@pytest.mark.parametrize("frames", [1, 6])  # the loop takes four at a time
def test_derivatives_of_the_lstm(frames):
    """First and second, with respect to input and parameters, forwards and backwards."""
    graphdef, params = nnx.split(LSTM(3, 2, rngs=nnx.Rngs(1)), nnx.Param)
    params = jax.tree.map(lambda leaf: 3 * leaf, params)
    rng = np.random.default_rng(0)
    at = params, rng.standard_normal((2, frames, 3)).astype(np.float32)
    along = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), at)

    def derivatives(apply):
        def loss(*at):
            return jnp.sum(jnp.sin(apply(*at)))

        gradient = jax.grad(loss, argnums=(0, 1))

        def slope(*at):
            return jax.jvp(loss, at, along)[1]

        return {
            "backwards": gradient(*at),
            "forwards": slope(*at),
            "forwards, backwards": jax.jvp(gradient, at, along)[1],
            "backwards, forwards": jax.grad(slope, argnums=(0, 1))(*at),
        }

    ours = jax.jit(lambda: derivatives(lambda params, x: nnx.merge(graphdef, params)(x)))()
    expected = jax.jit(lambda: derivatives(written_out))()
    for name, tree in expected.items():
        for a, b in zip(jax.tree.leaves(ours[name]), jax.tree.leaves(tree), strict=True):
            assert_close(a, b, 1e-4, name)


def test_quantizer_picks_the_nearest_code_and_the_first_on_ties():
    codec = make_codec(SMALL)
    embed = np.zeros((3, 16, 8), np.float32)
    embed[0, 5], embed[0, 9] = 1.0, 1.0  # equally near: the first wins
    embed[1, 3] = 0.5
    codec.quantizer.embed[...] = jnp.asarray(embed)
    codes = codec.quantizer.encode(jnp.full((1, 1, 8), 1.5))
    assert codes[0, :, 0].tolist() == [5, 3, 0]
    np.testing.assert_array_equal(codec.quantizer.decode(codes), jnp.full((1, 1, 8), 1.5))


def test_lstm_of_no_input_is_the_skip_alone():
    lstm = LSTM(4, 2, rngs=nnx.Rngs(0))
    zeroed = jax.tree.map(jnp.zeros_like, nnx.split(lstm)[1])
    lstm = nnx.merge(nnx.split(lstm)[0], zeroed)
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    np.testing.assert_array_equal(lstm(x), x)


def test_official_codec_has_the_official_size():
    shapes = nnx.state(module_shapes(Encodec, ENCODEC_32KHZ), nnx.Param)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    weight_norm_gains, second_lstm_biases = 7937, 4 * 4096
    buffers = 4 * (1 + 2048 + 2048 * 128)  # inited, cluster_size, embed_avg of each codebook
    assert count + weight_norm_gains + second_lstm_biases + buffers == 58_990_022
