"""JAX's global switches, which other code in the process may need, change no tokens."""

import jax
import numpy as np
import pytest

from musicgen_jax import testing
from tests.helpers import shallow

RATE = 4000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 1, 8000)).astype(np.float32)
SHORT = {"duration": 0.3, "seed": 3}


def text():
    model = testing.random_model(shallow.TEXT)
    codes = np.asarray(model.encode(NOISE[..., :800], RATE))
    made = model.generate(["a waltz"], prompt_codes=codes, top_p=0.9, **SHORT)
    blocks = list(model.stream(["a waltz"], chunk_seconds=0.1, use_sampling=False, **SHORT))
    return made.codes, made.audio, np.concatenate(blocks, axis=2)


def melody():
    model = testing.random_model(shallow.MELODY)
    settings = {"separate": False, "cfg_coef_beta": 2.0, **SHORT}
    return (model.generate_with_chroma(["a waltz"], NOISE[0], RATE, **settings).codes,)


def style():
    model = testing.random_model(shallow.STYLE)
    settings = {"excerpt_length": 0.25, **SHORT}
    return (model.generate_with_style(["a waltz"], NOISE[0], RATE, **settings).codes,)


def stems():
    audio, _ = testing.random_separator().melody(NOISE[0, :, :1500], 2000)
    return (audio,)


@pytest.mark.parametrize("run", [text, melody, style, stems])
def test_with_64_bit_numbers_allowed(run):
    expected = run()
    with jax.enable_x64(True):
        made = run()
    for one, other in zip(expected, made, strict=True):
        assert one.dtype == other.dtype
        if np.issubdtype(one.dtype, np.integer):
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, atol=1e-5)
