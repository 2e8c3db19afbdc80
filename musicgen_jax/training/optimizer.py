"""The language model's optimizer: Muon for the matrices inside layers, AdamW for the rest."""

import dataclasses
from typing import Any

import jax
import optax
from optax import contrib


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Warm-up, cosine decay and strengths."""

    learning_rate: float = 3e-3
    warmup_steps: int = 60
    final_learning_rate: float = 0.03  # as a fraction of `learning_rate`
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    muon: bool = True  # False: AdamW throughout, as the original


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps.

    Muon orthogonalises the update of every two-axis weight inside a layer, which learns faster per
    step at this size; its updates are scaled to the root mean square that AdamW would give, so
    that one learning rate serves both. Embeddings, heads, norms and biases take AdamW.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        config.warmup_steps,
        max(steps, config.warmup_steps + 1),
        config.learning_rate * config.final_learning_rate,
    )
    decay = config.weight_decay
    if config.muon:
        inner = contrib.muon(
            schedule,
            weight_decay=decay,
            adam_b2=0.95,
            adam_weight_decay=decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        inner = optax.adamw(schedule, b2=0.95, weight_decay=decay)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)


def _matrices(params: Any) -> Any:
    """Which leaves Muon takes: [O, I] weights inside layers; None for the others."""

    def choose(path, leaf):
        keys = {str(key.key) for key in path}
        inside = "layers" in keys and "weight" in keys and leaf.ndim == 2
        return contrib.MuonDimensionNumbers(1, 0) if inside else None

    return jax.tree_util.tree_map_with_path(choose, params)
