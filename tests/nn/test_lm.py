"""The language model against itself: causality, caches, masks, gradients."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicgen_jax.nn.condition import Condition, Embedded, interleave, null_like
from musicgen_jax.nn.folded_cross import FoldedCross
from musicgen_jax.nn.lm import LM, compute_predictions
from musicgen_jax.nn.lora import LoraConfig, attach
from musicgen_jax.nn.transformer import sinusoidal_positions
from musicgen_jax.runtime.tuning import CPU, GPU, TPU, Tuning
from tests.helpers.lm_models import CONFIG, FORMS, array, make_condition, make_lm
from tests.helpers.tolerance import assert_close


def random_steps(batch: int, length: int, seed: int = 0) -> jax.Array:
    shape = (batch, CONFIG.n_q, length)
    return array(np.random.default_rng(seed).integers(0, CONFIG.card + 1, shape), jnp.int32)


# Compiled as one program each, rather than one for each operation.
forward = jax.jit(LM.__call__)
cross_kv = jax.jit(LM.cross_kv, static_argnames="fold")
decode = jax.jit(LM.decode)


@pytest.mark.parametrize(
    ("conditioning", "prefix", "stride", "tuning"),
    [
        *((*f, 0, CPU) for f in FORMS),
        ("prepend", 4, 3, CPU),
        ("cross", 4, 3, CPU),
        ("cross", 0, 0, TPU),
        ("prepend", 4, 0, TPU),
    ],
)
def test_stepwise_decode_equals_the_full_sequence(conditioning, prefix, stride, tuning):
    """With two layers; also with heads side by side in the cache, as on a TPU."""
    lm = make_lm(conditioning, layers=2, stride=stride, tuning=tuning)
    condition = make_condition([5, 2, 0], 5, prefix=prefix)
    steps = random_steps(3, 9)
    full = forward(lm, steps, condition)
    kv = cross_kv(lm, condition)
    cache = lm.init_cache(3, lm.prefix_length(condition) + 16)
    # Three known steps and two of padding, which decode must overwrite.
    padded = jnp.concatenate([steps[:, :, :3], random_steps(3, 2, seed=5)], axis=2)
    cache = jax.jit(LM.prefill)(lm, padded, cache, kv, condition)
    for s in range(3, 9):
        logits, cache = decode(lm, np.asarray(steps)[:, :, s], s, cache, kv, condition)
        assert logits.dtype == jnp.float32
        assert_close(logits, full[:, :, s], 1e-5)


@pytest.mark.parametrize(("rows", "length"), [([3], 3), ([2, 3], 3), ([7], 7), ([8], 8)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_folding_a_short_text_only_saves_reading(rows, length, dtype, tolerance):
    lm = make_lm(dtype=dtype, param_dtype=dtype, tuning=GPU)
    condition = make_condition(rows, length)
    steps, batch = random_steps(len(rows), 6), len(rows)
    whole, folded = cross_kv(lm, condition, fold=False), cross_kv(lm, condition)
    # Heads are 8 wide: fewer vectors are less to read than the weights, which have their dtype.
    less = batch * length < 8
    assert isinstance(folded[0], FoldedCross) == less
    read = partial(decoded, lm, steps, condition=condition, cache=lm.init_cache(batch, 8))
    assert_close(read(cross_kv=folded), read(cross_kv=whole), tolerance)


def test_weights_with_lora_are_not_folded():
    lm, condition = make_lm(), make_condition([3], 3)
    attach(lm, LoraConfig(rank=2, target="cross_attention/out_proj"))
    assert not any(isinstance(each, FoldedCross) for each in cross_kv(lm, condition))


@pytest.mark.parametrize("length", [2, 9])
def test_rows_without_a_source_need_no_row_of_the_condition(length):
    """As a null row next to each row that has one; folded (2) or not (9)."""
    lm, condition = make_lm(), make_condition([length, 1], length)
    steps = jnp.repeat(random_steps(2, 6), 2, axis=0)
    both = interleave(condition, null_like(condition))
    read = partial(decoded, lm, steps, cache=lm.init_cache(4, 8))
    assert_close(
        read(condition=condition, cross_kv=cross_kv(lm, condition)),
        read(condition=both, cross_kv=cross_kv(lm, both)),
        1e-5,
    )


@jax.jit
def decoded(lm: LM, steps, condition, cross_kv, cache) -> jax.Array:
    """Logits of the last of `steps`, read in two parts: those before it at once, then itself."""
    cache = lm.prefill(steps[:, :, :-1], cache, cross_kv, condition)
    last = steps.shape[2] - 1
    return lm.decode(steps[:, :, last], last, cache, cross_kv, condition)[0]


@pytest.mark.parametrize(("conditioning", "prefix"), FORMS)
def test_a_step_sees_only_what_came_before(conditioning, prefix):
    lm, condition = make_lm(conditioning), make_condition([3], 3, prefix=prefix)
    steps = random_steps(1, 8)
    changed = steps.at[:, :, 5].set((steps[:, :, 5] + 1) % CONFIG.card)
    before, after = forward(lm, steps, condition), forward(lm, changed, condition)
    np.testing.assert_array_equal(before[:, :, :5], after[:, :, :5])
    assert np.abs(before[:, :, 5:] - after[:, :, 5:]).max(axis=(0, 1, 3)).min() > 1e-3


@pytest.mark.parametrize(("conditioning", "prefix"), FORMS)
def test_a_row_does_not_depend_on_its_neighbours_padding(conditioning, prefix):
    lm, steps = make_lm(conditioning), random_steps(2, 6)
    alone = forward(lm, steps[:1], make_condition([2], 2, prefix=prefix))
    beside = forward(lm, steps, make_condition([2, 11], 11, prefix=prefix))
    assert_close(beside[:1], alone, 1e-5)


@pytest.mark.parametrize(("conditioning", "prefix"), FORMS)
def test_the_condition_matters(conditioning, prefix):
    lm, steps = make_lm(conditioning), random_steps(1, 6)
    condition = make_condition([4], 4, prefix=prefix)
    other = make_condition([3], 4, prefix=prefix)
    assert np.abs(forward(lm, steps, condition) - forward(lm, steps, other)).max() > 1e-2


def test_prefix_comes_before_text():
    """In audiocraft the melody is prepended last, so it stands first."""
    lm, steps = make_lm("prepend"), random_steps(1, 4)
    condition = make_condition([3], 3, prefix=2)
    joined = jnp.concatenate([condition.audio.vectors, condition.text.vectors], axis=1)
    as_one = Condition(audio=Embedded(joined, jnp.ones((1, 5), bool)))
    assert_close(forward(lm, steps, condition), forward(lm, steps, as_one), 1e-6)


def test_with_a_stride_the_prefix_is_numbered_by_time():
    """The numbers are read from what the transformer gets when all vectors are zero."""
    lm, numbers = make_lm("prepend", stride=3), []
    lm.emb.embedding[...] = jnp.zeros_like(lm.emb.embedding[...])

    def transformer(x, *rest):
        numbers.append(x)
        return x, None

    lm.transformer = transformer
    condition = jax.tree.map(
        lambda leaf: leaf if leaf.dtype == bool else jnp.zeros_like(leaf),
        make_condition([2, 4], 4, prefix=3),
    )
    lm(random_steps(2, 2), condition)
    short, full = [0, 3, 6, -2, -1, -1, -1, 0, 1], [0, 3, 6, -4, -3, -2, -1, 0, 1]
    # A masked position has any number.
    kept = np.array([[True] * 5 + [False] * 2 + [True] * 2, [True] * 9])
    expected = sinusoidal_positions(jnp.array([short, full]), CONFIG.dim)
    assert_close(numbers[0][kept], expected[kept], 1e-6)


@pytest.mark.parametrize("conditioning", ["cross", "prepend"])
def test_a_null_row_is_no_condition_and_has_finite_gradients(conditioning):
    lm, steps = make_lm(conditioning), random_steps(2, 5)
    null = make_condition([0, 0], 4)
    assert_close(forward(lm, steps, null), forward(lm, steps, Condition()), 1e-6)

    graphdef, params = nnx.split(lm, nnx.Param)

    def loss(params, cross):
        condition = Condition(Embedded(cross, null.text.mask))
        return jnp.square(nnx.merge(graphdef, params)(steps, condition)).mean()

    grads, cross_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, null.text.vectors)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    np.testing.assert_array_equal(cross_grad, 0)


def test_predictions_line_up_with_the_codes():
    """Frame t of book k is predicted from all that stands before its slot, and nothing else."""
    lm, condition = make_lm(), make_condition([3], 3)
    T, delays = 7, CONFIG.delays
    codes = jnp.asarray(np.random.default_rng(3).integers(0, CONFIG.card, (1, 3, T)), jnp.int32)
    predictions = jax.jit(compute_predictions)
    logits, mask = predictions(lm, codes, condition)
    assert logits.shape == (1, 3, T, CONFIG.card)
    assert mask.shape == codes.shape
    np.testing.assert_array_equal(mask[0].sum(1), [T - d for d in delays])
    np.testing.assert_array_equal(np.isnan(logits).all(-1), ~mask)
    np.testing.assert_array_equal(np.isnan(logits).any(-1), ~mask)
    for book, frame in [(0, 4), (1, 2), (2, 5)]:
        changed = codes.at[0, book, frame].add(1) % CONFIG.card
        moved = np.abs(predictions(lm, changed, condition)[0] - logits).max(-1)[0] > 1e-6
        step = np.arange(T) + 1 + np.asarray(delays)[:, None]  # [K, T]
        expected = (step > frame + 1 + delays[book]) & np.asarray(mask[0])
        np.testing.assert_array_equal(moved, expected)


def test_bfloat16_stays_close_and_float32_where_it_counts():
    exact, half = make_lm(), make_lm(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    condition, steps = make_condition([3, 1], 3), random_steps(2, 6)
    logits = forward(half, steps, condition)
    assert logits.dtype == jnp.float32
    # A CPU would widen a bfloat16 cache at every step: see `runtime.tuning`.
    assert half.init_cache(1, 4)[0].k.dtype == jnp.float32
    assert half.init_cache(1, 4, jnp.bfloat16)[0].k.dtype == jnp.bfloat16
    assert_close(logits, forward(exact, steps, condition), 0.1)


def test_an_eight_bit_cache_stays_close_and_is_a_quarter():
    """Step by step, so that everything but the newest step is read from the cache."""
    exact, rounded = make_lm(), make_lm(tuning=Tuning(cache_dtype="float8_e4m3fn"))
    condition, steps = make_condition([3, 1], 3), random_steps(2, 6)
    caches = exact.init_cache(2, 8), rounded.init_cache(2, 8)
    wide, narrow = (sum(x.nbytes for x in jax.tree.leaves(cache)) for cache in caches)
    assert narrow * 4 == wide
    logits = []
    for lm, cache in zip((exact, rounded), caches, strict=True):
        kv, row = cross_kv(lm, condition), []
        for i in range(6):
            out, cache = decode(lm, np.asarray(steps)[:, :, i], i, cache, kv, condition)
            row.append(out)
        logits.append(np.stack(row))
    assert (logits[0] != logits[1]).any()
    assert_close(logits[1], logits[0], 0.1)


def test_parameters_are_the_documented_tree():
    config = dataclasses.replace(CONFIG, num_layers=2)
    lm = nnx.eval_shape(lambda: LM(config, rngs=nnx.Rngs(0)))
    tree = nnx.to_pure_dict(nnx.state(lm, nnx.Param))
    paths = {
        "/".join(str(k.key) for k in path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    D, F, K, V = CONFIG.dim, CONFIG.ffn_dim, CONFIG.n_q, CONFIG.card
    layer = {
        "self_attn/in_proj/weight": (3 * D, D),
        "self_attn/out_proj/weight": (D, D),
        "cross_attention/in_proj/weight": (3 * D, D),
        "cross_attention/out_proj/weight": (D, D),
        "linear1/weight": (F, D),
        "linear2/weight": (D, F),
    } | {f"{n}/{p}": (D,) for n in ("norm1", "norm_cross", "norm2") for p in ("scale", "bias")}
    expected = {f"transformer/layers/{i}/{k}": s for i in range(2) for k, s in layer.items()} | {
        "emb/embedding": (K, V + 1, D),
        "heads/weight": (K, V, D),
        "out_norm/scale": (D,),
        "out_norm/bias": (D,),
        "text_conditioner/output_proj/weight": (D, CONFIG.text_dim),
        "text_conditioner/output_proj/bias": (D,),
    }
    assert paths == expected
