"""Modules of shapes alone are those that are drawn."""

import jax
import pytest
from flax import nnx

from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.mert import Mert
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.testing import DEBUG_STYLE

MODULES = {"t5": T5Encoder, "lm": LM, "encodec": Encodec, "mert": Mert}


@pytest.mark.parametrize("component", MODULES)
def test_shapes_are_those_of_a_drawn_module(component):
    config = getattr(DEBUG_STYLE, component)
    ours = module_shapes(MODULES[component], config)
    drawn = nnx.eval_shape(lambda: MODULES[component](config, rngs=nnx.Rngs(0)))
    assert jax.tree.leaves(nnx.state(ours))
    assert nnx.to_pure_dict(nnx.state(ours)) == nnx.to_pure_dict(nnx.state(drawn))
    assert nnx.graphdef(ours) == nnx.graphdef(drawn)


def test_arguments_reach_the_module():
    half = module_shapes(LM, DEBUG_STYLE.lm, param_dtype="bfloat16")
    assert nnx.to_pure_dict(nnx.state(half))["heads"]["weight"].dtype == "bfloat16"


def test_who_changes_one_changes_no_other():
    one = module_shapes(LM, DEBUG_STYLE.lm)
    one.emb.embedding.set_value(jax.numpy.zeros(3))
    one.heads = None
    other = module_shapes(LM, DEBUG_STYLE.lm)
    drawn = nnx.eval_shape(lambda: LM(DEBUG_STYLE.lm, rngs=nnx.Rngs(0)))
    assert nnx.graphdef(other) == nnx.graphdef(drawn)
    assert isinstance(other.emb.embedding.get_value(), jax.ShapeDtypeStruct)
