"""The bytes that a step of the language model must read, to compare with a memory's rate."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicgen_jax.generation.decode import cache_growth
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.transformer import CrossCache
from musicgen_jax.runtime.memory import nbytes

TEXT_TOKENS = 16  # of the description that is attended to


def mean_slots(lm: LM, rows: int, steps: int) -> float:
    """The average length of the cache over the steps of a run."""
    lengths = cache_growth(lm, rows, steps)
    spans = np.diff([0, *(min(n, steps) for n in lengths[:-1]), steps])
    return float(np.dot(spans, lengths) / steps)


def bytes_per_step(lm: LM, batch: int, steps: int, slots: int | None = None) -> dict[str, int]:
    """The bytes that one step must read: weights and the whole cache. Needs shapes only.

    For a cache that grows it is the mean over the steps, unless `slots` sets a length.
    """
    rows = 2 * batch
    attending = batch if lm.skip_null_rows else rows
    text = Embedded(
        jnp.zeros((attending, TEXT_TOKENS, lm.config.dim), lm.dtype),
        jnp.ones((attending, TEXT_TOKENS), bool),
    )
    condition = Condition(text)
    length = slots or mean_slots(lm, rows, steps)
    cache, cross = jax.eval_shape(lambda lm: (lm.init_cache(rows, 1), lm.cross_kv(condition)), lm)
    read = nnx.to_pure_dict(nnx.state(lm, nnx.Param))
    weights = sum(nbytes(read[part]) for part in ("transformer", "heads"))
    # Cross-attention reads only the query part of its fused weight, and not even that if folded.
    cross = cross or ()  # a model that puts its conditions in front has no cross-attention
    for layer, each in zip(lm.transformer.layers, cross, strict=bool(cross)):
        attention = layer.cross_attention
        weights -= nbytes(nnx.state(attention, nnx.Param))
        if isinstance(each, CrossCache):
            weights += nbytes(each.query) + nbytes(nnx.state(attention.out_proj, nnx.Param))
    return {
        "weights": weights,
        "cache": round(nbytes(cache) * length) + sum(nbytes((each.k, each.v)) for each in cross),
        "held": nbytes(read),
    }
