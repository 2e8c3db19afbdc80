"""The optimizer: warm-up, cosine decay, clipping, and AdamW with or without Muon."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from optax import contrib


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer; betas and eps are audiocraft's."""

    learning_rate: float = 3e-3
    warmup_steps: int = 60
    final_learning_rate: float = 0.03  # as a fraction of `learning_rate`
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.02
    clip_norm: float = 1.0  # 0: no clipping
    muon: bool = True  # False: AdamW for all weights, as in audiocraft

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.eps <= 0:
            raise ValueError(
                f"learning_rate and eps must be positive, got {self.learning_rate}, {self.eps}"
            )
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1, got {getattr(self, name)}")
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(
                f"final_learning_rate must be from 0 to 1, got {self.final_learning_rate}"
            )


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step: linear warm-up from 0, then half a cosine."""
    return optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        config.warmup_steps,
        max(steps, config.warmup_steps + 1),
        config.learning_rate * config.final_learning_rate,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps.

    Muon trains every two-axis weight inside a layer; AdamW trains embeddings, heads, norms and
    biases.
    """
    schedule = make_schedule(config, steps)
    decay, betas = config.weight_decay, (config.beta1, config.beta2)
    if config.muon:
        inner = muon(schedule, betas, _matrices, eps=config.eps, weight_decay=decay)
    else:
        inner = optax.adamw(schedule, *betas, eps=config.eps, weight_decay=decay)
    if not config.clip_norm:
        return inner
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)


def muon(
    schedule: optax.Schedule,
    betas: Sequence[float],
    matrices: Callable[[Any], Any],
    *,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Muon for matrices, AdamW for all other weights.

    Muon orthogonalises the update of a matrix, which learns faster per step at this model size. Its
    updates are scaled to the root mean square of AdamW's updates, so both share one learning rate.

    Args:
      schedule: the learning rate by step.
      betas: the two betas of AdamW.
      matrices: maps parameters to the `optax.contrib.MuonDimensionNumbers` of each leaf; None means
        AdamW.
      eps: of AdamW and of the orthogonalisation.
      weight_decay: of both.
    """
    return contrib.muon(
        schedule,
        weight_decay=weight_decay,
        adam_b1=betas[0],
        adam_b2=betas[1],
        eps=eps,
        adam_weight_decay=weight_decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=matrices,
    )


def _matrices(params: Any) -> Any:
    """Selects the leaves for Muon: [O, I] weights inside layers. The others get None."""

    def choose(path, leaf):
        keys = {str(key.key) for key in path}
        inside = "layers" in keys and "weight" in keys and leaf.ndim == 2
        return contrib.MuonDimensionNumbers(1, 0) if inside else None

    return jax.tree_util.tree_map_with_path(choose, params)
