"""Weighs losses by their share of the gradient at the codec's output."""

import dataclasses

import jax
import jax.numpy as jnp

_EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class BalancerConfig:
    """How to weigh the losses against each other (audiocraft, losses/balancer.py)."""

    balance_grads: bool = True  # False: the weights simply multiply the losses
    total_norm: float = 1.0  # of the sum of all gradients, if they were parallel
    ema_decay: float = 0.999  # of the average norms, per step
    per_batch_item: bool = True  # the mean of the items' norms instead of the whole batch's norm

    def __post_init__(self) -> None:
        if not 0 < self.ema_decay <= 1:
            raise ValueError(f"ema_decay must be above 0 and at most 1, got {self.ema_decay}")
        if not self.total_norm > 0:
            raise ValueError(f"total_norm must be above 0, got {self.total_norm}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BalancerState:
    """Discounted sums for the average norms; their quotient is unbiased from the first step."""

    total: dict[str, jax.Array]  # per loss, float32 []
    count: jax.Array  # float32 []

    @staticmethod
    def start(names) -> "BalancerState":
        """The state before the first step."""
        return BalancerState({name: jnp.zeros(()) for name in names}, jnp.zeros(()))


def combine(
    config: BalancerConfig,
    state: BalancerState,
    weights: dict[str, float],
    losses: dict[str, jax.Array],
    grads: dict[str, jax.Array],
) -> tuple[jax.Array, BalancerState, dict[str, jax.Array]]:
    """Combines the gradients of all losses into the gradient for the codec.

    Args:
      config: how to balance.
      state: average norms so far.
      weights: per loss. With `balance_grads`, a loss gets the share weight / sum of all weights of
        the gradient.
      losses: float32 [] each.
      grads: of each loss with respect to the codec's output, [B, C, W].

    Returns:
      The combined gradient [B, C, W], the new state, and metrics: `g_loss`, the weighted sum of the
      losses, and one `ratio_` per loss, its average norm over the sum of all average norms.
    """
    if config.per_batch_item:
        count = next(iter(grads.values())).shape[0]
        norms = {k: jnp.sqrt(jnp.square(g).sum((1, 2))).mean() for k, g in grads.items()}
    else:
        count = 1
        norms = {k: jnp.sqrt(jnp.square(g).sum()) for k, g in grads.items()}
    decay = config.ema_decay
    total = {k: state.total[k] * decay + count * norm for k, norm in norms.items()}
    state = BalancerState(total, state.count * decay + count)
    average = {k: value / state.count for k, value in total.items()}
    if config.balance_grads:
        share = config.total_norm / sum(weights[k] for k in grads)
        scales = {k: share * weights[k] / (_EPSILON + norm) for k, norm in average.items()}
    else:
        scales = {k: jnp.asarray(weights[k], jnp.float32) for k in grads}
    combined = sum((scales[k] * grad for k, grad in grads.items()), jnp.zeros(()))
    everything = sum(average.values(), jnp.zeros(()))
    metrics = {f"ratio_{k}": norm / (_EPSILON + everything) for k, norm in average.items()}
    metrics["g_loss"] = sum((scales[k] * losses[k] for k in grads), jnp.zeros(()))
    return combined, state, metrics
