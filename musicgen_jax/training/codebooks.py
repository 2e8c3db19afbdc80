"""Codebooks that follow the encoder: k-means start, moving averages, revival of dead codes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.nn.encodec.quantizer import ResidualVectorQuantizer

_EPSILON = 1e-5  # added to counts, so that a code that never won can be divided by its own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodebookState:
    """Moving averages behind the codebooks (audiocraft, quantization/core_vq.py)."""

    embed: jax.Array  # [K, bins, D], the codebooks themselves
    count: jax.Array  # [K, bins], how many vectors each code won lately
    total: jax.Array  # [K, bins, D], their sum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """Latents as the decoder gets them in training."""

    latents: jax.Array  # [B, T, D]; gradients pass through as if nothing had been rounded
    codes: jax.Array  # int32 [B, K, T], of all books
    commitment: jax.Array  # float32 [K], how far each book's input lies from the code chosen


def quantize(
    quantizer: ResidualVectorQuantizer, latents: jax.Array, num_books: jax.Array | int
) -> Quantized:
    """Quantizes with a gradient.

    Args:
      quantizer: the codebooks; no gradient goes there.
      latents: float32 [B, T, D].
      num_books: how many books, from the first on, the decoder gets; may be traced.
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
    """One number of the books in use: [K] -> [].

    Args:
      commitment: of each book, from `quantize`.
      num_books: how many are in use, from the first on.
      books: "all" is their mean, as in audiocraft; "last" the error that all of them leave.
    """
    if books == "last":
        return jnp.take(commitment, jnp.asarray(num_books) - 1)
    return jnp.where(jnp.arange(len(commitment)) < num_books, commitment, 0.0).sum() / num_books


def start(embed: jax.Array, count: float) -> CodebookState:
    """Averages that stand at the codebooks [K, bins, D], each code credited with `count` wins.

    (The original starts with what k-means counted but with the sum of one vector, which shrinks a
    code of two wins to half at the first update.)
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
    """Residual k-means: the first codebooks of an encoder that was trained without a quantizer.

    Args:
      latents: float32 [N, D], N >= 1; fewer than `bins` leave codes without a vector.
      n_q: number of codebooks.
      bins: entries in each.
      rounds: Lloyd iterations per codebook.
      seed: of the random starting points.
      count: what each code is credited with.

    Returns:
      A CodebookState whose averages start at the found centres.
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
      The mean of the vectors nearest to each centre, or the centre itself if it has none; and
      their number, int [bins].
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
    """Moves each code towards the vectors that it won; codes that win too few start anew.

    The original writes a dead code's new vector over the code but not over its averages, out of
    which it computes all codes in the next line: its codes stay dead. Here the averages start anew.

    Args:
      state: averages so far.
      latents: float32 [N, D], the encoder's output.
      codes: int32 [N, K], what the quantizer chose for them.
      key: draws the vectors at which dead codes start anew.
      decay: of the moving averages, per call.
      dead_below: a code with a smaller average count is dead; 0 for none.
      num_books: how many books, from the first on, were in use; the others stay. None for all.

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
        # A revived code gets the benefit of a few wins before it is judged again.
        count = jnp.where(dead, 4 * dead_below, count)
        total = jnp.where(dead[:, None], embed * count[:, None], total)
        new = embed, count, total
        old = state.embed[k], state.count[k], state.total[k]
        books.append(jax.tree.map(lambda n, o, k=k: jnp.where(used[k], n, o), new, old))
        residual = residual - state.embed[k][codes[:, k]]
    embed, count, total = (jnp.stack(parts) for parts in zip(*books, strict=True))
    return CodebookState(embed, count, total)


def usage(histogram: np.ndarray) -> dict[str, float]:
    """How evenly codes are used.

    Args:
      histogram: [K, bins], how often each code was chosen; not all zero in any book.

    Returns:
      Of each book: `usage_k`, the share of its codes that occur; `entropy_k`, in bits; and
      `perplexity_k`, two to that power: how many codes, evenly used, would say as much.
    """
    out = {}
    for k, row in enumerate(np.asarray(histogram, np.float64)):
        shares = row[row > 0] / row.sum()
        entropy = float(-(shares * np.log2(shares)).sum())
        out[f"usage_{k}"] = len(shares) / len(row)
        out[f"entropy_{k}"], out[f"perplexity_{k}"] = entropy, 2.0**entropy
    return out
