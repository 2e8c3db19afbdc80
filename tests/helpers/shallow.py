"""Models of one layer: what a second layer adds is tested in `tests/nn` and by the golden files.

Every layer is traced and compiled by itself, so the second one costs as much as the first.
"""

import dataclasses

from musicgen_jax import testing
from musicgen_jax.config import MusicGenConfig


def shallow(config: MusicGenConfig) -> MusicGenConfig:
    """The same model with one layer in each of its transformers."""
    lm = dataclasses.replace(config.lm, num_layers=1)
    if lm.style is not None:
        lm = dataclasses.replace(lm, style=dataclasses.replace(lm.style, num_layers=1))
    mert = config.mert and dataclasses.replace(config.mert, num_layers=1)
    t5 = dataclasses.replace(config.t5, num_layers=1)
    return dataclasses.replace(config, t5=t5, lm=lm, mert=mert)


TEXT = shallow(testing.DEBUG)
STEREO = shallow(testing.DEBUG_STEREO)
MELODY = shallow(testing.DEBUG_MELODY)
STYLE = shallow(testing.DEBUG_STYLE)
