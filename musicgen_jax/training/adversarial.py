"""Adversarial losses of a codec and its adversary (audiocraft, adversarial/losses.py).

Each loss is a mean over the discriminators of the adversary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from musicgen_jax.training.discriminator import Maps


def _below(x: jax.Array, margin: float = 1.0) -> jax.Array:
    """Mean shortfall of x below the margin."""
    return jnp.maximum(margin - x, 0.0).mean()


_GENERATOR: dict[str, Callable[[jax.Array], jax.Array]] = {
    "hinge": lambda fake: -fake.mean(),
    "hinge2": _below,
    "mse": lambda fake: jnp.square(fake - 1).mean(),
}


def generator_loss(kind: str, fake: list[jax.Array]) -> jax.Array:
    """The loss of the codec: high when the adversary recognises decoded audio.

    Args:
      kind: "hinge", "hinge2" (no reward beyond the margin) or "mse".
      fake: logits of decoded audio, per discriminator.

    Returns:
      float32 [].
    """
    return sum((_GENERATOR[kind](logits) for logits in fake), jnp.zeros(())) / len(fake)


def discriminator_loss(kind: str, fake: list[jax.Array], real: list[jax.Array]) -> jax.Array:
    """The loss of the adversary: high when it confuses decoded and real audio.

    Args:
      kind: "hinge", "hinge2" (the same here) or "mse".
      fake: logits of decoded audio, per discriminator.
      real: logits of real audio, per discriminator.

    Returns:
      float32 [].
    """
    if kind == "mse":
        losses = [
            jnp.square(f).mean() + jnp.square(r - 1).mean() for f, r in zip(fake, real, strict=True)
        ]
    else:
        losses = [_below(-f) + _below(r) for f, r in zip(fake, real, strict=True)]
    return sum(losses, jnp.zeros(())) / len(fake)


def feature_matching_loss(fake: Maps, real: Maps) -> jax.Array:
    """Mean absolute difference of feature maps; all layers and discriminators weigh the same.

    Args:
      fake: feature maps of decoded audio.
      real: feature maps of real audio, with the same shapes.

    Returns:
      float32 [].
    """
    total = jnp.zeros(())
    for fakes, reals in zip(fake, real, strict=True):
        total += sum(
            (jnp.abs(f - r).mean() for f, r in zip(fakes, reals, strict=True)), jnp.zeros(())
        ) / len(fakes)
    return total / len(fake)
