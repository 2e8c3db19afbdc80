"""Audio that a caller passes: what counts as channels before samples."""

import numpy as np
import pytest

from musicgen_jax.conditioning.audio_input import check_audio
from musicgen_jax.errors import UserError


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 2), (6, 3), (3, 2, 1)])
def test_a_few_channels_of_fewer_samples_are_audio(shape):
    wav = check_audio(np.zeros(shape, np.float32), 32000, "audio")
    assert wav.shape[-2:] == shape[-2:]
    assert wav.ndim == 3


@pytest.mark.parametrize("shape", [(800, 1), (800, 2), (9, 8), (1, 9, 2)])
def test_more_channels_than_samples_look_transposed(shape):
    with pytest.raises(UserError, match="looks transposed"):
        check_audio(np.zeros(shape, np.float32), 32000, "audio")
