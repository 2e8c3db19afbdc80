"""The compiled loop over steps: it neither moves nor converts a weight or a cache."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicgen_jax.generation.decode import example_keys
from musicgen_jax.generation.program import Requests, advance, start
from musicgen_jax.generation.sampling import Mode, Numbers
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.nn import linear
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.shapes import module_shapes
from tests.helpers.compilation import by_default
from tests.helpers.lm_models import CONFIG

# Every matrix has a number of elements that nothing else in the loop has.
SIZES = dataclasses.replace(CONFIG, dim=192, num_heads=3, ffn_dim=448, num_layers=1, card=14)
WEIGHTS = {576 * 192, 192 * 192, 448 * 192, 3 * 14 * 192}
CACHE = 2 * 3 * 256 * 64
DTYPES = ("float32", "bfloat16", "int8")


def compiled_decode(dtype: str, tokens: int = 16):
    """The loop, of one example with guidance, as `generate_codes` compiles it."""
    compute = "float32" if dtype == "int8" else dtype
    lm = module_shapes(LM, SIZES, dtype=compute, param_dtype=dtype)
    graphdef, params = nnx.split(lm, nnx.Param)
    vectors = jnp.zeros((1, tokens, SIZES.dim), compute)
    condition = Condition(Embedded(vectors, jnp.ones((1, tokens), bool)))
    row = Sampling()
    requests = Requests(
        np.zeros((1, SIZES.n_q, 257), np.int32), np.int32([0]), np.int32([256]),
        example_keys(0, 1), Numbers.of([row]),
    )  # fmt: skip

    def begin(params):
        lm = nnx.merge(graphdef, params)
        return start(lm, requests, condition, prefill_length=0, slots=256, copies=2)

    def run(params, state, context, count):
        return advance(nnx.merge(graphdef, params), state, context, count, mode=Mode.of([row]))

    state, context = jax.eval_shape(begin, params)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    lowered = jax.jit(run, donate_argnums=1).lower(params, state, context, count)
    return lowered.compile(by_default())


def moved(hlo: str) -> tuple[list[str], int]:
    """What of a weight's or a cache's size is copied or converted, and how many products there are.

    In the whole program and not only in the loop: XLA may take a conversion out of it, which then
    costs the memory of a second set of weights.
    """
    instruction = re.compile(r"= \w+\[([\d,]+)\]\S* ([\w-]+)\(")
    found, products = [], 0
    for line in hlo.splitlines():
        if match := instruction.search(line):
            size = np.prod([int(n) for n in match[1].split(",")])
            products += match[2] in ("dot", "custom-call")
            moving = match[2] in ("copy", "convert", "transpose", "slice", "multiply")
            if moving and (size in WEIGHTS or size == CACHE):
                found.append(line.strip())
    return found, products


@pytest.mark.parametrize("tokens", [16, 128], ids=["folded", "not folded"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_weight_is_copied_or_converted(dtype, tokens):
    """A weight-sized copy per step and layer costs as much as reading the weight, or far more."""
    compiled = compiled_decode(dtype, tokens)
    found, products = moved(compiled.as_text())
    assert products >= 8
    assert not found
    memory = compiled.memory_analysis()
    # The state is donated: it comes out where it went in.
    assert memory.alias_size_in_bytes >= 2 * CACHE * 4
    used = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert used < 0.2 * memory.argument_size_in_bytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_another_type_would_be_seen(dtype, monkeypatch):
    """The proof of the test above: with a conversion put in on purpose it fails."""
    if dtype == "int8":
        monkeypatch.setattr(linear, "_int8_by_int8", linear._widened)
    else:
        other = jnp.bfloat16 if dtype == "float32" else jnp.float32
        plain = linear._product

        def converted(rows, w):
            return plain(rows.astype(other), w.astype(other))

        monkeypatch.setattr(linear, "_cpu_product", lambda rows, w: converted)
    found, _ = moved(compiled_decode(dtype, tokens=128).as_text())
    assert len(found) >= 6
