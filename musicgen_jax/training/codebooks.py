"""Codebooks that follow the encoder: k-means start, moving averages, revival of dead codes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.nn.encodec.quantizer import ResidualVectorQuantizer

_EPSILON = 1e-5  # added to counts, so that codes that never won do not divide by zero


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodebookState:
    """Codebooks and their moving averages (audiocraft, quantization/core_vq.py)."""

    embed: jax.Array  # [K, bins, D], the codebooks themselves
    count: jax.Array  # [K, bins], average number of vectors that each code won
    total: jax.Array  # [K, bins, D], average sum of those vectors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """Quantized latents, as the decoder receives them in training."""

    latents: jax.Array  # [B, T, D]; gradients pass straight through
    codes: jax.Array  # int32 [B, K, T], of all codebooks
    commitment: jax.Array  # float32 [K], squared distance of each book's input to its code


def quantize(
    quantizer: ResidualVectorQuantizer, latents: jax.Array, num_books: jax.Array | int
) -> Quantized:
    """Quantizes latents with a straight-through gradient.

    Args:
      quantizer: the codebooks; they receive no gradient.
      latents: float32 [B, T, D].
      num_books: how many codebooks the decoder receives, counted from the first; may be traced.
    """
    fixed = jax.lax.stop_gradient(latents)
    codes = quantizer.encode(fixed)
    embed = jax.lax.stop_gradient(quantizer.embed[...].astype(jnp.float32))
    residual, total, commitment = latents, jnp.zeros_like(fixed), []
    for k in range(embed.shape[0]):
        chosen = embed[k][codes[:, k]]
        commitment.append(jnp.square(residual - chosen).mean())
        residual = residual - chosen
        total += jnp.where(k < num_books, chosen, 0.0)
    return Quantized(latents + (total - fixed), codes, jnp.stack(commitment))


def commitment_loss(commitment: jax.Array, num_books: jax.Array | int, books: str) -> jax.Array:
    """Reduces the commitment of the codebooks in use to one number: [K] -> [].

    Args:
      commitment: per codebook, from `quantize`.
      num_books: number of codebooks in use, counted from the first.
      books: "all" takes the mean over the codebooks, as in audiocraft. "last" takes the error that
        remains after the last of them.
    """
    if books == "last":
        return jnp.take(commitment, jnp.asarray(num_books) - 1)
    return jnp.where(jnp.arange(len(commitment)) < num_books, commitment, 0.0).sum() / num_books


def start(embed: jax.Array, count: float) -> CodebookState:
    """The initial state: averages equal to the codebooks [K, bins, D], with `count` wins per code.

    (audiocraft starts with the counts of k-means but with the sum of a single vector. So its first
    update shrinks a code with two wins to half.)
    """
    return CodebookState(embed, jnp.full(embed.shape[:2], count, jnp.float32), embed * count)


def kmeans(
    latents: np.ndarray,
    n_q: int,
    bins: int,
    *,
    rounds: int = 10,
    seed: int = 0,
    count: float = 1.0,
) -> CodebookState:
    """Residual k-means: initial codebooks for an encoder that was trained without a quantizer.

    Args:
      latents: float32 [N, D], N >= 1; if N < `bins`, some codes have no vector of their own.
      n_q: number of codebooks.
      bins: number of codes per codebook.
      rounds: Lloyd iterations per codebook.
      seed: seed of the random initial centres.
      count: initial number of wins of each code.

    Returns:
      A CodebookState whose averages start at the centres.
    """
    rng = np.random.default_rng(seed)
    residual = latents.astype(np.float32)
    codebooks = []
    for _ in range(n_q):
        rows = rng.choice(len(residual), bins, replace=len(residual) < bins)
        centres = residual[rows].copy()
        for _ in range(rounds):
            centres, won = lloyd(residual, centres)
            idle = won == 0
            centres[idle] = residual[rng.choice(len(residual), int(idle.sum()))]
        residual = residual - centres[_nearest(residual, centres)]
        codebooks.append(centres)
    return start(jnp.asarray(np.stack(codebooks)), count)


def lloyd(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One round of k-means.

    Args:
      vectors: float32 [N, D].
      centres: float32 [bins, D].

    Returns:
      The mean of the vectors nearest to each centre, or the centre itself if there are none; and
      the number of these vectors, int [bins].
    """
    nearest = _nearest(vectors, centres)
    count = np.bincount(nearest, minlength=len(centres))
    total = np.zeros_like(centres)
    np.add.at(total, nearest, vectors)
    means = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], centres)
    return means.astype(centres.dtype), count


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
    num_books: jax.Array | int | None = None,
) -> CodebookState:
    """Moves each code towards the vectors that it won, and restarts codes that win too few.

    audiocraft replaces a dead code but not its averages. The next line computes all codes from the
    averages, so its dead codes stay dead. Here the averages restart too.

    Args:
      state: averages so far.
      latents: float32 [N, D], the encoder's output.
      codes: int32 [N, K], the codes of these latents.
      key: draws the new vectors of dead codes.
      decay: of the moving averages, per call.
      dead_below: a code with a smaller average count is dead; 0: no code dies.
      num_books: number of codebooks in use, counted from the first (default: all). The others do
        not change.

    Returns:
      The new state.
    """
    n_q, bins, _ = state.embed.shape
    used = jnp.arange(n_q) < (n_q if num_books is None else num_books)
    residual, books = latents, []
    for k in range(n_q):
        won = jax.ops.segment_sum(jnp.ones(len(residual)), codes[:, k], bins)
        sums = jax.ops.segment_sum(residual, codes[:, k], bins)
        count = decay * state.count[k] + (1 - decay) * won
        total = decay * state.total[k] + (1 - decay) * sums
        everything = count.sum()
        smoothed = (count + _EPSILON) / (everything + bins * _EPSILON) * everything
        embed = total / jnp.maximum(smoothed, 1e-30)[:, None]
        fresh = residual[jax.random.randint(jax.random.fold_in(key, k), (bins,), 0, len(residual))]
        dead = count < dead_below
        embed = jnp.where(dead[:, None], fresh, embed)
        # A few free wins protect a revived code until it has won vectors of its own.
        count = jnp.where(dead, 4 * dead_below, count)
        total = jnp.where(dead[:, None], embed * count[:, None], total)
        new = embed, count, total
        old = state.embed[k], state.count[k], state.total[k]
        books.append(jax.tree.map(lambda n, o, k=k: jnp.where(used[k], n, o), new, old))
        residual = residual - state.embed[k][codes[:, k]]
    embed, count, total = (jnp.stack(parts) for parts in zip(*books, strict=True))
    return CodebookState(embed, count, total)


def usage(histogram: np.ndarray) -> dict[str, float]:
    """Measures how evenly the codes are used.

    Args:
      histogram: [K, bins], how often each code was chosen; not all zero in any book.

    Returns:
      For each codebook k: `usage_k`, the share of its codes that occur; `entropy_k` in bits; and
      `perplexity_k` = 2^entropy, the number of evenly used codes with the same entropy.
    """
    out = {}
    for k, row in enumerate(np.asarray(histogram, np.float64)):
        shares = row[row > 0] / row.sum()
        entropy = float(-(shares * np.log2(shares)).sum())
        out[f"usage_{k}"] = len(shares) / len(row)
        out[f"entropy_{k}"], out[f"perplexity_{k}"] = entropy, 2.0**entropy
    return out
