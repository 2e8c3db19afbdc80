import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_jax.config import T5_BASE, T5Config
from musicgen_jax.nn.t5 import RMSNorm, T5Encoder, relative_position_bias, relative_position_buckets
from tests.helpers.tolerance import assert_close

TINY = T5Config(
    vocab_size=37,
    d_model=10,
    d_kv=3,
    d_ff=14,
    num_layers=2,
    num_heads=5,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
)


@jax.jit
def encode(encoder, ids, mask):
    return encoder(ids, mask)


def random_encoder(config: T5Config = TINY, seed: int = 0, **kwargs) -> T5Encoder:
    """An encoder whose weights, norms too, are normal with std 0.3."""
    rng = np.random.default_rng(seed)
    graphdef, shapes = nnx.split(
        nnx.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0), **kwargs))
    )
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )
    return nnx.merge(graphdef, params)


def random_batch(lengths, total, seed=0):
    ids = np.random.default_rng(seed).integers(3, TINY.vocab_size, (len(lengths), total))
    mask = np.arange(total) < np.array(lengths)[:, None]
    return np.where(mask, ids, 0).astype(np.int32), mask


# --- Relative positions -----------------------------------------------------------------------


def test_buckets_of_the_official_configuration():
    buckets = relative_position_buckets(300, 32, 128)
    assert buckets.shape == (599,)
    # key - query -> bucket, printed by the original
    known = {0: 0, -1: 1, -7: 7, -8: 8, -9: 8, -12: 9, -16: 10, -64: 14, -127: 15, -299: 15}
    known |= {1: 17, 7: 23, 8: 24, 9: 24, 12: 25, 16: 26, 64: 30, 127: 31, 299: 31}
    assert {d: int(buckets[d + 299]) for d in known} == known


@given(
    length=st.integers(1, 300),
    num_buckets=st.integers(2, 16).map(lambda n: 2 * n),
    max_distance=st.integers(17, 200),
)
@settings(deadline=None, max_examples=50)
def test_buckets_grow_with_distance_and_keep_directions_apart(length, num_buckets, max_distance):
    buckets = relative_position_buckets(length, num_buckets, max_distance)
    half = num_buckets // 2
    past, future = buckets[:length][::-1], buckets[length:]  # by growing distance; 0 is "past"
    assert past[0] == 0
    assert np.all(np.diff(past) >= 0)
    assert past.max() < half
    np.testing.assert_array_equal(future, past[1:] + half)
    np.testing.assert_array_equal(past[: half // 2], np.arange(half // 2)[:length])
    assert np.all(past[max_distance:] == half - 1)


def test_bias_reads_the_table_at_key_minus_query():
    table = jnp.asarray(np.random.default_rng(0).standard_normal((32, 3)), jnp.float32)
    bias = np.asarray(relative_position_bias(table, 20, 128))
    assert bias.shape == (3, 20, 20)
    for query, key in [(0, 0), (5, 4), (4, 5), (19, 0), (0, 19)]:
        bucket = relative_position_buckets(20, 32, 128)[key - query + 19]
        np.testing.assert_array_equal(bias[:, query, key], table[bucket])


# --- Norm -------------------------------------------------------------------------------------


def test_rms_norm_measures_in_float32():
    norm = RMSNorm(4, epsilon=1e-6, dtype=jnp.float16, param_dtype=jnp.float32)
    x = jnp.full((1, 4), 300.0, jnp.float16)  # its square overflows float16
    np.testing.assert_allclose(np.asarray(norm(x), np.float32), 1.0, rtol=1e-3)
    assert norm(x).dtype == jnp.float16
    assert np.all(np.asarray(norm(jnp.zeros((1, 4)))) == 0.0)


# --- Encoder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_dtype", [bool, np.int32])
def test_padding_does_not_change_a_prompt(mask_dtype):
    encoder = random_encoder()
    ids, mask = random_batch([5], 5)
    alone = encode(encoder, ids, mask.astype(mask_dtype))
    garbage = np.random.default_rng(1).integers(0, TINY.vocab_size, (3, 11)).astype(np.int32)
    garbage[1, :5] = ids[0]
    long_mask = np.arange(11) < np.array([11, 5, 0])[:, None]
    batched = encode(encoder, garbage, long_mask.astype(mask_dtype))
    assert batched.shape == (3, 11, TINY.d_model)
    assert_close(batched[1, :5], alone[0], 1e-5)


def test_a_row_without_a_prompt_is_finite_in_values_and_gradients():
    encoder = random_encoder()
    ids, mask = random_batch([4, 0], 6)
    assert np.all(np.isfinite(encode(encoder, ids, mask)))

    def loss(module, mask):
        return jnp.mean(jnp.square(module(ids, mask)))

    for case in (mask, np.zeros_like(mask)):
        gradients = jax.jit(jax.grad(loss))(encoder, case)
        for leaf in jax.tree.leaves(gradients):
            assert np.all(np.isfinite(leaf))


def test_every_parameter_gets_a_true_gradient():
    encoder = random_encoder()
    ids, mask = random_batch([9, 7], 9)
    target = np.random.default_rng(2).standard_normal((2, 9, TINY.d_model)).astype(np.float32)
    graphdef, params = nnx.split(encoder, nnx.Param)

    @jax.jit
    def loss(params):
        hidden = nnx.merge(graphdef, params)(ids, mask)
        return jnp.sum(jnp.where(mask[..., None], hidden * target, 0.0))

    gradients = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))
    direction = jax.tree.map(lambda g: g / np.sqrt(np.sum(g**2)), gradients)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.any(leaf != 0.0), jax.tree_util.keystr(path)
    step = 1e-3
    ahead = loss(jax.tree.map(lambda p, d: np.asarray(p) + step * d, params, direction))
    behind = loss(jax.tree.map(lambda p, d: np.asarray(p) - step * d, params, direction))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradients, direction)))
    assert_close((ahead - behind) / (2 * step), slope, 1e-2)


def test_a_new_encoder_starts_at_unit_scale():
    config = T5Config(vocab_size=500, d_model=128, d_kv=16, d_ff=256, num_layers=2, num_heads=8)
    encoder = jax.jit(lambda: T5Encoder(config, rngs=nnx.Rngs(0)))()
    std = {"q": 128**-0.5 * 16**-0.5, "k": 128**-0.5, "o": 128**-0.5, "wo": 256**-0.5}
    for name, expected in std.items():
        weight = getattr(encoder.layers[1], name).weight[...]
        np.testing.assert_allclose(np.std(weight), expected, rtol=0.05, err_msg=name)
    np.testing.assert_allclose(np.std(encoder.shared.embedding[...]), 1.0, rtol=0.05)


def test_dtypes():
    encoder = random_encoder(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(encoder))} == {"bfloat16"}
    ids, mask = random_batch([5, 3], 5)
    hidden = encode(encoder, ids, mask)
    assert hidden.dtype == jnp.bfloat16
    reference = random_encoder()  # the same weights before rounding
    assert_close(hidden.astype(jnp.float32)[mask], encode(reference, ids, mask)[mask], 0.1)


def test_parameter_paths_and_official_size():
    shapes = nnx.eval_shape(lambda: T5Encoder(T5_BASE, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(shapes, nnx.Param))
    assert set(params) == {"shared", "relative_attention_bias", "layers", "final_norm"}
    assert params["shared"]["embedding"].shape == (32128, 768)
    assert params["relative_attention_bias"]["embedding"].shape == (32, 12)
    assert params["final_norm"]["scale"].shape == (768,)
    assert jax.tree.map(lambda p: p.shape, params["layers"][11]) == {
        "attention_norm": {"scale": (768,)},
        **{name: {"weight": (768, 768)} for name in "qkvo"},
        "ffn_norm": {"scale": (768,)},
        "wi": {"weight": (3072, 768)},
        "wo": {"weight": (768, 3072)},
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 109_628_544
    # Nothing but parameters: tables would be traced, saved and trained.
    assert len(jax.tree.leaves(nnx.state(shapes))) == len(jax.tree.leaves(params))
