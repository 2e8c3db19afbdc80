"""Our programs for a GPU, as XLA leaves them; it needs no GPU and no CUDA, only jax's plugin."""

import importlib.util
from functools import cache

import pytest

from tests.helpers.benchmark_runs import figures

# The sampler as it is on a CPU, where a threshold is found bit by bit.
BIT_BY_BIT = """
import functools, sys
from musicgen_jax.generation import sampling
sampling.top_k_mask = functools.partial(sampling.top_k_mask, bits=1)
import gpu_compile
gpu_compile.main(sys.argv[1:])
"""
# The codec's recurrence without its unrolling.
FRAME_BY_FRAME = """
import sys
from musicgen_jax.nn.encodec import lstm
lstm._UNROLL = 1
import gpu_compile
gpu_compile.main(sys.argv[1:])
"""

pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda12_plugin") is None,
        reason="pip install 'musicgen-jax[gpu-compiler]'",
    ),
]


@cache
def compiled(*arguments: str, script: tuple[str, ...] = ("gpu_compile.py",)) -> dict:
    """What the benchmark says, without the optimisation level that other tests ask for."""
    return figures(*script, "--quick", *arguments, XLA_FLAGS=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_step_is_started_once_and_moves_no_weight_and_no_cache(dtype):
    program = compiled("--dtype", dtype)
    assert program["kernels"] > 20  # the loop was found
    assert (program["launches"], program["command_buffers"]) == (1, 1)
    assert program["inner_loops"] == 0
    assert not program["moved"]
    assert not program["entry_moved"]
    assert program["extra_bytes"] < 0.02 * program["argument_bytes"]


def test_a_threshold_bit_by_bit_would_be_a_loop_that_the_host_goes_round():
    """Why accelerators settle more bits at a time; and that the test above sees what it should."""
    program = compiled(script=("-c", BIT_BY_BIT))
    assert program["inner_loops"] == 1
    assert program["launches"] > 1


def test_the_codecs_recurrence_is_started_some_frames_at_a_time():
    program = compiled("--program", "codec", "--frames", "50")
    assert (program["launches"], program["command_buffers"]) == (1, 1)
    assert program["kernels"] >= 8
    assert not program["moved"]


def test_frame_by_frame_it_would_be_four_launches_a_frame():
    shape = ("--program", "codec", "--frames", "50")
    program = compiled(*shape, script=("-c", FRAME_BY_FRAME))
    assert (program["launches"], program["command_buffers"]) == (4, 0)
