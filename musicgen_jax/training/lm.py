"""Training of the language model and of its text encoder, on codes that were encoded once."""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from musicgen_jax.conditioning.condition import Condition
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.lm import LM, compute_predictions
from musicgen_jax.t5 import T5Encoder
from musicgen_jax.training.losses import codebook_cross_entropy
from musicgen_jax.training.optimizer import OptimizerConfig, make_optimizer


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training with one length of segments."""

    steps: int
    frames: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class LMTrainConfig:
    """How a language model is trained; short segments first, whole windows later."""

    phases: tuple[Phase, ...]
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    text_dropout: float = 0.15  # how often the whole prompt is dropped, for guidance
    freeze_text: bool = True  # the text encoder stays as it is, as the original's
    codebook_weights: tuple[float, ...] = ()  # of the loss; (): all alike, as the original
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """The phase in which a step falls."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise ValueError("the step lies beyond the last phase")


class Examples(Protocol):
    """Where training takes its segments from."""

    def segment(self, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, str]:
        """One random segment: codes [K, frames] and its prompt."""
        ...


Tokenize = Callable[[list[str | None]], tuple[np.ndarray, np.ndarray]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LMTrainState:
    """Everything that changes while a language model trains."""

    step: jax.Array
    params: Any  # {"t5": ..., "lm": ...}
    optimizer: optax.OptState


def init(model: MusicGenConfig, config: LMTrainConfig, t5: Any = None) -> LMTrainState:
    """A new language model before its first step, with a trained text encoder or a new one."""
    rngs = nnx.Rngs(config.seed)
    parts = {"t5": T5Encoder(model.t5, rngs=rngs), "lm": LM(model.lm, rngs=rngs)}
    params = {name: nnx.to_pure_dict(nnx.state(part, nnx.Param)) for name, part in parts.items()}
    if t5 is not None:
        params["t5"] = t5
    optimizer = make_optimizer(config.optimizer, config.steps)
    return LMTrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained(params, config)))


def trained(params: Any, config: LMTrainConfig) -> dict:
    """The part of the parameters that training changes."""
    return {"lm": params["lm"]} if config.freeze_text else params


def make_loss(model: MusicGenConfig, codebook_weights: tuple[float, ...] = ()) -> Callable:
    """The loss (params, codes [B, K, T], ids [B, L], mask [B, L]) -> (mean, per codebook [K])."""
    weights = jnp.asarray(codebook_weights or (1.0,) * model.lm.n_q)
    weights = weights / weights.sum()
    t5_shape = nnx.eval_shape(lambda: T5Encoder(model.t5, rngs=nnx.Rngs(0)))
    lm_shape = nnx.eval_shape(lambda: LM(model.lm, rngs=nnx.Rngs(0)))
    t5_graph, lm_graph = nnx.split(t5_shape, nnx.Param)[0], nnx.split(lm_shape, nnx.Param)[0]

    def loss(params, codes, ids, mask):
        t5 = nnx.merge(t5_graph, params["t5"])
        lm = nnx.merge(lm_graph, params["lm"])
        text = lm.text_conditioner(t5(ids, mask), mask)  # [B, L, D]
        logits, predicted = compute_predictions(lm, codes, Condition(text, mask, None, None))
        per_codebook = codebook_cross_entropy(logits, codes, predicted)
        return weights @ per_codebook, per_codebook

    return loss


def make_step(model: MusicGenConfig, config: LMTrainConfig) -> Callable:
    """The jitted training step (state, codes, ids, mask) -> (state, cross-entropies [K])."""
    loss = make_loss(model, config.codebook_weights)
    optimizer = make_optimizer(config.optimizer, config.steps)

    @functools.partial(jax.jit, donate_argnames="state")
    def step(state: LMTrainState, codes, ids, mask):
        def of_trained(part):
            return loss({**state.params, **part}, codes, ids, mask)

        part = trained(state.params, config)
        grads, per_codebook = jax.grad(of_trained, has_aux=True)(part)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, part)
        params = state.params | optax.apply_updates(part, updates)  # type: ignore[operator]
        return LMTrainState(state.step + 1, params, optimizer_state), per_codebook

    return step


def batches(
    examples: Examples, tokenize: Tokenize, config: LMTrainConfig, start: int
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Batches (codes, ids, mask) from step `start` on; the i-th depends on the seed and i alone."""
    for step in range(start, config.steps):
        phase = config.phase_at(step)
        rng = np.random.default_rng((config.seed, step))
        codes, prompts = [], []
        for _ in range(phase.batch_size):
            segment, prompt = examples.segment(rng, phase.frames)
            codes.append(segment)
            prompts.append(None if rng.random() < config.text_dropout else prompt)
        yield step, (np.stack(codes).astype(np.int32), *tokenize(prompts))


def train(
    model: MusicGenConfig,
    config: LMTrainConfig,
    examples: Examples,
    tokenize: Tokenize,
    *,
    state: LMTrainState | None = None,
    log: Callable[[dict], None] = lambda record: None,
    save: Callable[[LMTrainState], None] = lambda state: None,
    evaluate: Callable[[dict], dict] = lambda params: {},
    every: int = 25,
    save_every: int = 100,
) -> LMTrainState:
    """Trains a language model and returns the final state.

    Args:
      model: the architecture.
      config: how to train.
      examples: source of segments.
      tokenize: prompts to (ids [B, L], mask [B, L]) of one fixed L.
      state: where to go on from; None starts anew.
      log: receives the mean cross-entropies every `every` steps.
      save: receives the state every `save_every` steps and at the end.
      evaluate: parameters to figures, logged at every save.
      every: steps between log records.
      save_every: steps between saves.
    """
    now = init(model, config) if state is None else state
    step_fn = make_step(model, config)
    recent, began = collections.deque(maxlen=every), time.monotonic()
    for step, batch in batches(examples, tokenize, config, int(now.step)):
        now, per_codebook = step_fn(now, *batch)
        recent.append(per_codebook)
        last = step + 1 == config.steps
        if (step + 1) % every == 0 or last:
            means = np.mean(jax.device_get(list(recent)), axis=0)
            figures = {"loss": means.mean(), **{f"book {k}": m for k, m in enumerate(means)}}
            seconds = round(time.monotonic() - began, 1)
            log({"step": step + 1, "seconds": seconds, **_rounded(figures)})
        if (step + 1) % save_every == 0 or last:
            save(now)
            if figures := evaluate(now.params):
                log({"step": step + 1, **_rounded(figures)})
    return now


def _rounded(figures: dict) -> dict:
    return {name: round(float(value), 4) for name, value in figures.items()}
