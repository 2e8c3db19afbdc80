"""`generate_codes` with a seed in place of keys, and the fields of `Sampling` as keywords."""

import dataclasses

import numpy as np

from musicgen_jax.generation import decode
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.nn.condition import Condition
from musicgen_jax.nn.lm import LM

_FIELDS = {field.name for field in dataclasses.fields(Sampling)}


def generate_codes(lm: LM, condition: Condition, *, seed=0, keys=None, **kwargs) -> np.ndarray:
    sampling = Sampling(**{name: kwargs.pop(name) for name in _FIELDS & kwargs.keys()})
    if keys is None:
        batch = 1 if condition.text is None else len(condition.text.mask)
        keys = decode.example_keys(seed, batch)
    return decode.generate_codes(lm, condition, keys=keys, sampling=sampling, **kwargs)
