"""Our programs for a TPU, as its compiler leaves them; it needs no TPU, only `libtpu`."""

import importlib.util
from functools import cache

import pytest

from tests.helpers.benchmark_runs import figures

# Of musicgen-small with two layers.
LM_PARAMETERS, T5_PARAMETERS = 51_137_536, 109_628_544

pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="pip install 'musicgen-jax[tpu]'"
    ),
]


@cache
def compiled(*arguments: str) -> dict:
    """The benchmark's figures; libtpu refuses XLA's flags for CPUs."""
    return figures("tpu_compile.py", "--quick", *arguments, XLA_FLAGS=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_loop_moves_no_weight_and_no_cache(dtype):
    """Before the loop, in other dtypes than a TPU's own, some may be converted once."""
    program = compiled("--dtype", dtype)
    assert not program["moved"]
    assert dtype != "bfloat16" or not program["entry_moved"]
    assert program["kernels"] > 20  # the loop was found
    assert program["extra_bytes"] < 0.2 * program["argument_bytes"]


def test_heads_apart_would_cost_a_second_cache_and_more_cycles(tmp_path):
    """Why a TPU keeps heads side by side; and the proof that the test above sees what it should."""
    apart = compiled("--heads-apart")
    assert any("bf16[2,16,256,64]" in moved for moved in apart["entry_moved"])
    # All layers of the small model: in two of them the sampler is too large a share.
    results = tmp_path / "results.jsonl"
    side_by_side, apart = (
        figures("tpu_compile.py", *layout, results=results, XLA_FLAGS=None)
        for layout in (("--dtype", "bfloat16"), ("--heads-apart",))
    )
    assert apart["cycles"] > 2 * side_by_side["cycles"]


@pytest.mark.slow
def test_a_training_step_is_spread_over_four():
    """FSDP: a device keeps a quarter of parameters, moments, average and text encoder."""
    shape = ("--topology", "v5e:2x2", "--batch", "4", "--frames", "100")
    program = compiled("--program", "train", *shape)
    kept = (16 * LM_PARAMETERS + 4 * T5_PARAMETERS) / 4
    assert 0.95 * kept < program["argument_bytes"] < 1.05 * kept
    assert program["extra_bytes"] < 2 * kept
