"""The delay pattern, for any delays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_jax.nn.patterns import num_steps, to_codes, to_steps

delays_lists = st.lists(st.integers(0, 6), min_size=1, max_size=9)
SPECIAL = 99


def random_codes(batch, delays, frames):
    return np.random.default_rng(0).integers(0, SPECIAL, (batch, len(delays), frames), np.int32)


def test_the_documented_example():
    codes = np.arange(3, dtype=np.int32) + 10 * np.arange(1, 5, dtype=np.int32)[:, None]
    dot = SPECIAL
    expected = [
        [dot, 10, 11, 12, dot, dot, dot],
        [dot, dot, 20, 21, 22, dot, dot],
        [dot, dot, dot, 30, 31, 32, dot],
        [dot, dot, dot, dot, 40, 41, 42],
    ]
    np.testing.assert_array_equal(to_steps(codes[None], (0, 1, 2, 3), SPECIAL)[0], expected)


@given(delays_lists, st.integers(0, 12), st.integers(1, 3))
def test_codes_survive_the_round_trip(delays, frames, batch):
    codes = random_codes(batch, delays, frames)
    steps = to_steps(codes, delays, SPECIAL)
    assert steps.shape == (batch, len(delays), num_steps(frames, delays))
    np.testing.assert_array_equal(to_codes(steps, delays), codes)


@given(delays_lists, st.integers(0, 12))
def test_every_code_stands_where_its_delay_says_and_all_else_is_special(delays, frames):
    codes = random_codes(1, delays, frames)
    steps = to_steps(codes, delays, SPECIAL)[0]
    for k, delay in enumerate(delays):
        for s in range(num_steps(frames, delays)):
            t = s - 1 - delay
            if 0 <= t < frames:
                assert steps[k, s] == codes[0, k, t]
            else:
                assert steps[k, s] == SPECIAL


def test_jax_arrays_traced_or_not_and_trailing_axes():
    delays, codes = (0, 2, 1), random_codes(2, (0, 2, 1), 5)
    steps = jax.jit(lambda c: to_steps(c, delays, SPECIAL))(jnp.asarray(codes))
    assert isinstance(steps, jax.Array)
    np.testing.assert_array_equal(steps, to_steps(codes, delays, SPECIAL))
    pairs = jnp.stack([steps, -steps], axis=-1)
    np.testing.assert_array_equal(to_codes(pairs, delays), np.stack([codes, -codes], -1))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="one book per delay"):
        to_steps(np.zeros((1, 3, 5), np.int32), (0, 1), SPECIAL)
    with pytest.raises(ValueError, match="too few"):
        to_codes(np.zeros((1, 2, 3), np.int32), (0, 3))
