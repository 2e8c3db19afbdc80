"""Codebooks that follow the encoder: k-means start, moving averages, revival of dead codes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodebookState:
    """Moving averages behind the codebooks (audiocraft, quantization/core_vq.py)."""

    embed: jax.Array  # [K, bins, D], the codebooks themselves
    count: jax.Array  # [K, bins], how many vectors each code won lately
    total: jax.Array  # [K, bins, D], their sum


def kmeans(latents: np.ndarray, n_q: int, bins: int, *, rounds: int = 10, seed: int = 0):
    """Residual k-means: the first codebooks of an encoder that was trained without a quantizer.

    Args:
      latents: float32 [N, D], N >= bins.
      n_q: number of codebooks.
      bins: entries in each.
      rounds: Lloyd iterations per codebook.
      seed: of the random starting points.

    Returns:
      A CodebookState whose averages start at the found centres.
    """
    rng = np.random.default_rng(seed)
    residual = latents.astype(np.float32)
    codebooks = []
    for _ in range(n_q):
        centres = residual[rng.choice(len(residual), bins, replace=False)].copy()
        for _ in range(rounds):
            nearest = _nearest(residual, centres)
            count = np.bincount(nearest, minlength=bins)
            total = np.zeros_like(centres)
            np.add.at(total, nearest, residual)
            won = count > 0
            centres[won] = total[won] / count[won, None]
            centres[~won] = residual[rng.choice(len(residual), int((~won).sum()))]
        residual = residual - centres[_nearest(residual, centres)]
        codebooks.append(centres)
    embed = jnp.asarray(np.stack(codebooks))
    return CodebookState(embed, jnp.ones(embed.shape[:2]), embed.copy())


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((centres**2).sum(-1) - 2 * vectors @ centres.T).argmin(-1)


def update(
    state: CodebookState,
    latents: jax.Array,
    codes: jax.Array,
    key: jax.Array,
    *,
    decay: float,
    dead_below: float,
) -> CodebookState:
    """Moves each code towards the vectors that it won; codes that win too few start anew.

    Args:
      state: averages so far.
      latents: float32 [N, D], the encoder's output.
      codes: int32 [N, K], what the quantizer chose for them.
      key: draws the vectors at which dead codes start anew.
      decay: of the moving averages, per call.
      dead_below: a code with a smaller average count is dead.

    Returns:
      The new state.
    """
    n_q, bins, _ = state.embed.shape
    residual, books = latents, []
    for k in range(n_q):
        won = jax.ops.segment_sum(jnp.ones(len(residual)), codes[:, k], bins)
        sums = jax.ops.segment_sum(residual, codes[:, k], bins)
        count = decay * state.count[k] + (1 - decay) * won
        total = decay * state.total[k] + (1 - decay) * sums
        embed = total / jnp.maximum(count, 1e-6)[:, None]
        fresh = residual[jax.random.randint(jax.random.fold_in(key, k), (bins,), 0, len(residual))]
        dead = count < dead_below
        embed = jnp.where(dead[:, None], fresh, embed)
        # A revived code gets the benefit of a few wins before it is judged again.
        count = jnp.where(dead, 4 * dead_below, count)
        total = jnp.where(dead[:, None], embed * count[:, None], total)
        books.append((embed, count, total))
        residual = residual - state.embed[k][codes[:, k]]
    embed, count, total = (jnp.stack(parts) for parts in zip(*books, strict=True))
    return CodebookState(embed, count, total)
