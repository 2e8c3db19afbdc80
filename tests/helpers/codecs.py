"""Small codecs, with weights large enough that every part shows."""

from flax import nnx

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.testing import random_params


def make_codec(config: EncodecConfig, std: float = 0.3) -> Encodec:
    graphdef, state = nnx.split(module_shapes(Encodec, config))
    nnx.replace_by_pure_dict(state, random_params(nnx.to_pure_dict(state), std=std))
    return nnx.merge(graphdef, state)
