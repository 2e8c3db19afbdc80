"""Losses of the game between a codec and its adversary (audiocraft, adversarial/losses.py).

Each is a mean over the adversary's discriminators, whatever their number.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from musicgen_jax.training.discriminator import Maps


def _below(x: jax.Array, margin: float = 1.0) -> jax.Array:
    """How far x stays below the margin, on average."""
    return jnp.maximum(margin - x, 0.0).mean()


_GENERATOR: dict[str, Callable[[jax.Array], jax.Array]] = {
    "hinge": lambda fake: -fake.mean(),
    "hinge2": _below,
    "mse": lambda fake: jnp.square(fake - 1).mean(),
}


def generator_loss(kind: str, fake: list[jax.Array]) -> jax.Array:
    """How little the adversary is fooled.

    Args:
      kind: "hinge", "hinge2" (no reward beyond the margin) or "mse".
      fake: logits of decoded audio, of each discriminator.

    Returns:
      float32 [].
    """
    return sum((_GENERATOR[kind](logits) for logits in fake), jnp.zeros(())) / len(fake)


def discriminator_loss(kind: str, fake: list[jax.Array], real: list[jax.Array]) -> jax.Array:
    """How badly the adversary tells decoded audio from real.

    Args:
      kind: "hinge", "hinge2" (the same here) or "mse".
      fake: logits of decoded audio, of each discriminator.
      real: logits of real audio.

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
    """Mean absolute difference of the feature maps: every layer and discriminator counts alike.

    Args:
      fake: feature maps of decoded audio.
      real: those of real audio, of the same shapes.

    Returns:
      float32 [].
    """
    total = jnp.zeros(())
    for fakes, reals in zip(fake, real, strict=True):
        total += sum(
            (jnp.abs(f - r).mean() for f, r in zip(fakes, reals, strict=True)), jnp.zeros(())
        ) / len(fakes)
    return total / len(fake)
