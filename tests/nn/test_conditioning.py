import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicgen_jax.nn.condition import Condition, Embedded, interleave, null_like
from musicgen_jax.nn.text_conditioner import TextConditioner
from tests.helpers.tolerance import assert_close


def conditioner(text_dim=5, dim=6, **kwargs) -> TextConditioner:
    module = TextConditioner(text_dim, dim, rngs=nnx.Rngs(0), **kwargs)
    bias = jax.random.normal(jax.random.key(1), (dim,)) + 3.0  # far from zero, so that a leak shows
    module.output_proj.bias = nnx.Param(bias.astype(module.output_proj.bias[...].dtype))
    return module


def random_condition(seed: int, batch: int, length: int = 3, width: int = 4) -> Condition:
    rng = np.random.default_rng(seed)
    part = jnp.asarray(rng.standard_normal((batch, length, width)), jnp.float32)
    mask = jnp.asarray(rng.random((batch, length)) < 0.7)
    return Condition(Embedded(part, mask), Embedded(part[:, :2], mask[:, :2]))


@pytest.mark.parametrize("mask_dtype", [bool, np.int32])
def test_projection_is_affine_and_masked_positions_are_exact_zeros(mask_dtype):
    module = conditioner()
    hidden = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], mask_dtype)
    out = np.asarray(jax.jit(lambda m, h, k: m(h, k))(module, hidden, mask))
    weight = np.asarray(module.output_proj.weight[...])
    expected = hidden @ weight.T + np.asarray(module.output_proj.bias[...])
    assert out.shape == (3, 4, 6)
    assert_close(out[mask.astype(bool)], expected[mask.astype(bool)])
    assert np.all(out[~mask.astype(bool)] == 0.0)


def test_nan_at_a_masked_position_reaches_neither_values_nor_gradients():
    module = conditioner()
    mask = jnp.array([[True, False]])
    hidden = jnp.ones((1, 2, 5)).at[0, 1].set(jnp.nan)
    assert np.all(np.isfinite(module(hidden, mask)))
    gradient = jax.grad(lambda m: module_sum(m, jnp.ones((1, 2, 5)), mask))(module)
    # The masked position adds nothing to the bias gradient.
    np.testing.assert_array_equal(gradient.output_proj.bias[...], np.ones(6))


def module_sum(module, hidden, mask):
    return module(hidden, mask).sum()


def test_dtypes():
    module = conditioner(dtype=jnp.bfloat16, param_dtype=jnp.float16)
    assert module.output_proj.weight[...].dtype == jnp.float16
    assert module(jnp.ones((1, 2, 5)), jnp.ones((1, 2), bool)).dtype == jnp.bfloat16


def test_parameter_paths():
    params = nnx.to_pure_dict(nnx.state(conditioner(), nnx.Param))
    assert jax.tree.map(jnp.shape, params) == {"output_proj": {"weight": (6, 5), "bias": (6,)}}


def test_null_condition_is_zero_and_masked():
    condition = random_condition(0, 2)
    null = null_like(condition)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), null) == jax.tree.map(
        lambda a: (a.shape, a.dtype), condition
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(null))


def test_null_like_keeps_absent_parts_absent():
    null = null_like(Condition(Embedded(jnp.ones((1, 2, 3)), jnp.ones((1, 2), bool))))
    assert null.text is not None
    assert null.audio is None


def test_interleave_keeps_the_rows_of_an_example_together():
    a, b = random_condition(0, 2), random_condition(1, 2)
    both = jax.jit(interleave)(a, b)
    for whole, left, right in zip(*map(jax.tree.leaves, (both, a, b)), strict=True):
        np.testing.assert_array_equal(whole[::2], left)
        np.testing.assert_array_equal(whole[1::2], right)
    assert both.text.mask.dtype == bool


@pytest.mark.parametrize(
    "other",
    [
        random_condition(1, 2, length=5),
        random_condition(1, 2, width=6),
        Condition(Embedded(jnp.ones((2, 3, 4)), jnp.ones((2, 3), bool))),
    ],
    ids=["length", "width", "missing part"],
)
def test_interleave_refuses_parts_that_do_not_fit(other):
    with pytest.raises(ValueError, match=r"the shapes .* must be the same|structure error"):
        interleave(random_condition(0, 2), other)
