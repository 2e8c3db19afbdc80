"""int8 weights: the arithmetic, the loading, and how far the numbers go from float32's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicgen_jax import testing
from musicgen_jax.commands import cli
from musicgen_jax.config import LMConfig
from musicgen_jax.errors import UserError
from musicgen_jax.export import program
from musicgen_jax.model import MusicGen
from musicgen_jax.nn import linear as products
from musicgen_jax.nn.folded_cross import FoldedCross
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.weights import Int8Weight, quantize
from musicgen_jax.runtime import tuning
from musicgen_jax.storage import checkpoint
from tests.helpers import shallow
from tests.helpers.lm_models import make_condition
from tests.helpers.tolerance import assert_close

forward = jax.jit(LM.__call__)
linear = jax.jit(products.linear, static_argnames="out_dtype")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_quantize_rounds_each_row_by_itself():
    x = normal(5, 33) * np.float32([[1], [1e-3], [0], [50], [1]])
    whole, scale = map(np.asarray, quantize(jnp.asarray(x)))
    assert (whole.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (5, 1))
    assert np.all(np.abs(whole[[0, 1, 3, 4]]).max(1) == 127)
    assert np.all(np.abs(whole * scale - x) <= np.abs(x).max(1, keepdims=True) / 253)
    assert not whole[2].any()


@pytest.mark.parametrize("outputs", [10, 7])  # halved on a CPU, or not
@pytest.mark.parametrize("count", [1, 2, 9, 65])
def test_products(count, outputs):
    x, w, bias = normal(count, 1, 24), normal(outputs, 24, seed=1), normal(outputs, seed=2)
    expected = x @ w.T + bias
    assert_close(linear(jnp.asarray(x), jnp.asarray(w), jnp.asarray(bias)), expected)

    half = [jnp.asarray(a, jnp.bfloat16) for a in (x, w)]
    y = linear(*half, out_dtype=jnp.float32)
    assert y.dtype == jnp.float32
    assert_close(y, np.float32(half[0]) @ np.float32(half[1]).T)

    weight = Int8Weight(*quantize(jnp.asarray(w)))
    y = linear(jnp.asarray(x), weight, jnp.asarray(bias))
    whole, scale = quantize(jnp.asarray(x))
    exact = np.asarray(whole, np.int64) @ np.asarray(weight.int8, np.int64).T
    assert_close(y, exact * (np.asarray(scale) * np.asarray(weight.scale).T) + bias)
    assert np.abs(np.asarray(y) - expected).max() < 0.02 * np.abs(expected).max()
    # Whole numbers add up to the same in any order: a row does not depend on its neighbours.
    alone = linear(jnp.asarray(x[:1]), weight, jnp.asarray(bias))  # one row: another program
    np.testing.assert_allclose(np.asarray(y)[:1], alone, rtol=1e-6, atol=1e-6)


# --- The language model ------------------------------------------------------------------------

CONFIG = LMConfig(
    dim=64, num_heads=4, num_layers=2, n_q=2, card=64, delays=(0, 1), ffn_dim=256, text_dim=16
)


@pytest.fixture(scope="module")
def pair() -> tuple[LM, LM]:
    """One initialisation, in the spread that training begins with, as float32 and as int8."""

    def make(dtype):
        return jax.jit(lambda: LM(CONFIG, param_dtype=dtype, rngs=nnx.Rngs(0)))()

    return make(jnp.float32), make(jnp.int8)


def test_logits_stay_close_to_float32(pair):
    steps = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.card, (4, 2, 40)), jnp.int32)
    condition = make_condition([5, 3, 2, 0], 5, dim=CONFIG.dim)
    full, small = (np.asarray(forward(lm, steps, condition)) for lm in pair)
    error = np.sqrt(
        np.mean((small - full) ** 2) / np.mean((full - full.mean(-1, keepdims=True)) ** 2)
    )
    assert 1e-4 < error < 0.02  # it is rounded, and not by much
    best = full.argmax(-1)
    assert (best == small.argmax(-1)).mean() > 0.93
    # Where it takes another token, float32 was nearly undecided.
    top = np.sort(full, -1)
    chosen = np.take_along_axis(full, small.argmax(-1)[..., None], -1)[..., 0]
    assert (top[..., -1] - chosen).max() < 0.1 * full.std()


def test_prefill_and_decode_agree_with_the_whole_sequence(pair):
    lm, condition = pair[1], make_condition([4], 4, dim=CONFIG.dim)
    steps = jnp.asarray(np.random.default_rng(1).integers(0, CONFIG.card, (1, 2, 7)), jnp.int32)
    expected = np.asarray(forward(lm, steps, condition))[:, :, -1]
    errors = []
    for fold in (False, True):
        cross = jax.jit(LM.cross_kv, static_argnames="fold")(lm, condition, fold=fold)
        cache = jax.jit(LM.prefill)(lm, steps[:, :, :6], lm.init_cache(1, 9), cross, condition)
        logits, _ = jax.jit(LM.decode)(lm, steps[:, :, 6], 6, cache, cross, condition)
        errors.append(np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max())
    # A rounding of the floats may push an activation over to the next whole number.
    assert errors[0] < 0.005
    # What is folded meets activations that are not rounded at all.
    assert isinstance(cross[0], FoldedCross)
    assert errors[1] < 0.03


# --- Loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["plain", "bfloat16", "int8"])
def test_matrices_are_int8_from_any_storage(storage, tmp_path):
    config = testing.DEBUG
    dtype = "bfloat16" if storage == "bfloat16" else "float32"
    stored = testing.model_params(testing.random_model(config, dtype=dtype))
    checkpoint.save_model(
        folder := tmp_path / "m",
        config,
        stored,
        tokenizer=b"none",
        license="none",
        source={},
        storage="int8" if storage == "int8" else "plain",
    )
    abstract = nnx.eval_shape(lambda: LM(config.lm, param_dtype=jnp.int8, rngs=nnx.Rngs(0)))
    loaded = checkpoint.load_params(folder, "lm", nnx.to_pure_dict(nnx.state(abstract)))

    layer, origin = (tree["transformer"]["layers"][0] for tree in (loaded, stored["lm"]))
    for path in (("self_attn", "in_proj"), ("cross_attention", "out_proj"), ("linear2",)):
        weight, source = layer, origin
        for key in path:
            weight, source = weight[key], source[key]
        whole, scale = map(np.asarray, quantize(jnp.asarray(source["weight"])))
        assert weight["weight"]["int8"].dtype == jnp.int8
        off = np.abs(np.asarray(weight["weight"]["int8"], int) - whole)
        # numpy and XLA divide differently: what lies between two whole numbers may go either way.
        assert off.max() <= 1
        assert off.mean() < 0.01
        np.testing.assert_allclose(weight["weight"]["scale"], scale, rtol=1e-6)
    assert loaded["heads"]["weight"]["int8"].shape == stored["lm"]["heads"]["weight"].shape
    assert loaded["emb"]["embedding"].dtype == jnp.float32
    np.testing.assert_array_equal(
        loaded["out_norm"]["scale"], np.asarray(stored["lm"]["out_norm"]["scale"], np.float32)
    )


def test_a_random_int8_model_is_the_float_model_rounded():
    full, small = (
        testing.random_model(shallow.TEXT, std=0.05, dtype=d) for d in ("float32", "int8")
    )
    assert small.lm.dtype == jnp.float32
    assert small.lm.heads.weight[...].int8.dtype == jnp.int8
    weight = small.lm.heads.weight[...]
    np.testing.assert_allclose(weight.int8 * weight.scale, full.lm.heads.weight[...], atol=1e-3)
    out = small.generate(["x", None], duration=0.3, seed=1)
    assert out.codes.shape[:2] == (2, full.config.lm.n_q)
    again = small.generate(["x", None], duration=0.3, seed=1)
    np.testing.assert_array_equal(out.codes, again.codes)


def test_the_bundled_model_as_int8():
    full, small = (MusicGen.from_pretrained("nano", dtype=d) for d in ("float32", "int8"))
    codes = np.random.default_rng(0).integers(0, full.config.lm.card, (1, 4, 30))
    a, b = (np.nan_to_num(model.lm_logits(codes, ["a calm waltz"])) for model in (full, small))
    assert np.sqrt(np.mean((a - b) ** 2)) < 0.05 * a.std()
    assert dataclasses.asdict(full.config) == dataclasses.asdict(small.config)


def test_the_command_line_hands_the_dtype_on(monkeypatch, capsys):
    asked = []

    def load(name, *, dtype, cache_dtype, adapters, mesh):
        asked.append((dtype, cache_dtype))
        raise UserError("far enough")

    monkeypatch.setattr(MusicGen, "from_pretrained", load)
    assert cli.main(["generate", "x", "--dtype", "int8"]) == 2
    assert cli.main(["generate", "x", "--cache-dtype", "float8_e4m3fn"]) == 2
    assert asked == [("int8", None), (None, "float8_e4m3fn")]
    with pytest.raises(UserError, match="cache_dtype must be float32, bfloat16 or float8_e4m3fn"):
        tuning.cache_dtype("int4")
    with pytest.raises(SystemExit):
        cli.main(["generate", "x", "--dtype", "int4"])
    assert "int8" in capsys.readouterr().err


def test_export_refuses_it(tmp_path):
    pytest.importorskip("flatbuffers")
    with pytest.raises(UserError, match="int8 models are not exported"):
        program.export_model(testing.random_model(shallow.TEXT, dtype="int8"), tmp_path / "x")
