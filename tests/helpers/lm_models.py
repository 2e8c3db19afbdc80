"""Tiny language models and conditions, with weights large enough that every part shows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicgen_jax.config import LMConfig
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.shapes import module_shapes

# One layer: what a second one adds is tested where `make_lm` is asked for two.
CONFIG = LMConfig(
    dim=24, num_heads=3, num_layers=1, n_q=3, card=13, delays=(0, 2, 1), ffn_dim=40, text_dim=7
)


def array(numbers: np.ndarray, dtype) -> jax.Array:
    """Cast by NumPy and handed over as it is: `jnp.asarray` compiles a program for each shape."""
    return jax.device_put(numbers.astype(np.float32).astype(dtype))


def make_lm(
    conditioning: str = "cross", *, layers: int = CONFIG.num_layers, stride: int = 0, **kwargs
) -> LM:
    """A tiny model with weights large enough that every part of it shows.

    With a stride, it is a melody model whose prefix is numbered by time.
    """
    config = dataclasses.replace(CONFIG, conditioning=conditioning, num_layers=layers)
    if stride:
        config = dataclasses.replace(config, chroma_bins=12, chroma_stride=stride)
    lm = module_shapes(LM, config, **kwargs)
    graphdef, params = nnx.split(lm, nnx.Param)
    rng = np.random.default_rng(1)
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: array(
            rng.normal("scale" in jax.tree_util.keystr(path), 0.3, p.shape), p.dtype
        ),
        params,
    )
    return nnx.merge(graphdef, params)


def make_condition(rows: list[int], length: int, dim: int = CONFIG.dim, prefix=0) -> Condition:
    """Row i has `rows[i]` real vectors out of `length`; what is masked is garbage, not zeros."""
    vectors = [np.random.default_rng([9, i]).normal(size=(20, dim)) for i in range(len(rows))]
    cross = np.stack([v[:length] for v in vectors])
    mask = np.arange(length) < np.asarray(rows)[:, None]
    cross = np.where(mask[..., None], cross, 7.0)
    audio = None
    if prefix:
        excerpts = array(np.stack([v[-prefix:] for v in vectors]), np.float32)
        audio = Embedded(excerpts, jnp.ones((len(rows), prefix), bool))
    return Condition(Embedded(array(cross, np.float32), jax.device_put(mask)), audio)


FORMS = [("cross", 0), ("prepend", 0), ("prepend", 4)]
