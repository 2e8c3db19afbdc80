"""Trains the text encoder alone, so that it learns the meaning of words.

The official models use a frozen T5 that was trained on web text. A small model has no such encoder,
and a language model that is busy with notes learns words last. So the encoder first learns to
predict the attributes of a piece from its caption. One linear classifier per attribute reads the
mean of the hidden states; the classifiers are then discarded.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from musicgen_jax.config import T5Config
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.training.optimizer import OptimizerConfig, make_optimizer

Batch = tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]  # ids, mask [B, L]; labels [B]


@dataclasses.dataclass(frozen=True)
class TextTrainConfig:
    """How to train a text encoder."""

    steps: int = 1500
    batch_size: int = 64
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(learning_rate=2e-3)
    )
    seed: int = 0


def train(
    model: T5Config,
    config: TextTrainConfig,
    classes: Mapping[str, int],
    batch: Callable[[np.random.Generator, int], Batch],
    *,
    log: Callable[[dict], None] = lambda record: None,
    every: int = 100,
) -> dict:
    """Trains a text encoder and returns its parameters.

    Args:
      model: the architecture.
      config: how to train.
      classes: the number of classes of each attribute, keyed by the attribute's name.
      batch: takes a generator and B; returns ids int32 [B, L], mask bool [B, L] and the labels
        int [B] of each attribute.
      log: receives the mean accuracy per attribute every `every` steps. Captions leave out
        attributes, so an accuracy of 1 is impossible.
      every: steps between log records.
    """
    rngs = nnx.Rngs(config.seed)
    graphdef, state = nnx.split(T5Encoder(model, rngs=rngs), nnx.Param)
    params: Any = {
        "t5": nnx.to_pure_dict(state),
        "heads": {name: jnp.zeros((model.d_model, n)) for name, n in classes.items()},
    }
    optimizer = make_optimizer(config.optimizer, config.steps)

    def loss(params, ids, mask, labels):
        hidden = nnx.merge(graphdef, params["t5"])(ids, mask)  # [B, L, E]
        weights = mask / mask.sum(1, keepdims=True)
        pooled = jnp.einsum("ble,bl->be", hidden, weights)
        logits = {name: pooled @ head for name, head in params["heads"].items()}
        costs = [
            optax.softmax_cross_entropy_with_integer_labels(logits[name], labels[name]).mean()
            for name in classes
        ]
        right = {name: (logits[name].argmax(-1) == labels[name]).mean() for name in classes}
        return sum(costs, jnp.zeros(())), right

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, optimizer_state, ids, mask, labels):
        grads, right = jax.grad(loss, has_aux=True)(params, ids, mask, labels)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, right

    optimizer_state = optimizer.init(params)
    recent = collections.deque(maxlen=every)
    for i in range(config.steps):
        ids, mask, labels = batch(np.random.default_rng((config.seed, i)), config.batch_size)
        params, optimizer_state, right = step(params, optimizer_state, ids, mask, dict(labels))
        recent.append(right)
        if (i + 1) % every == 0 or i + 1 == config.steps:
            mean = {name: float(np.mean([r[name] for r in recent])) for name in classes}
            log({"step": i + 1, **{name: round(value, 4) for name, value in mean.items()}})
    return jax.device_get(params["t5"])
