"""Small codecs, with weights large enough that every part shows."""

from functools import partial

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.shapes import filled, module_shapes
from musicgen_jax.testing import random_params


def make_codec(config: EncodecConfig, std: float = 0.3) -> Encodec:
    return filled(module_shapes(Encodec, config), partial(random_params, std=std))
