"""Residual vector quantizer: latents <-> codes."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicgen_jax.nn.axes import aligned


class ResidualVectorQuantizer(nnx.Module):
    """K codebooks, each coding the residual of the earlier ones; `embed` is [K, bins, D]."""

    def __init__(
        self, n_q: int, bins: int, dimension: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        shape = (n_q, bins, dimension)
        self.embed = nnx.Param(jax.random.normal(rngs.params(), shape, param_dtype))

    @property
    def fingerprint(self) -> str:
        """A digest of the codebooks: codes are valid only with the codebooks they came from."""
        books = np.asarray(self.embed[...], np.float32)
        return hashlib.sha256(books.tobytes()).hexdigest()[:16]

    def encode(self, latents: jax.Array, n_q: int | None = None) -> jax.Array:
        """Finds the nearest codes, one codebook after another: [B, T, D] -> int32 [B, K, T].

        Args:
          latents: float [B, T, D].
          n_q: K, the number of codebooks to use, from the first one on (default: all).
        """
        residual = latents.astype(jnp.float32)
        codes = []
        for codebook in self.embed[:n_q].astype(jnp.float32):  # [bins, D]
            # Always at full precision: a rounded distance can select a different code. The terms
            # are added in the original's order, so that near ties are resolved the same way.
            dots = jnp.matmul(residual, codebook.T, precision="highest")
            norms = jnp.sum(residual**2, -1, keepdims=True)
            distance = norms - 2 * dots + aligned(jnp.sum(codebook**2, -1), dots)
            index = jnp.argmin(distance, axis=-1).astype(jnp.int32)
            residual = residual - codebook[index]
            codes.append(index)
        return jnp.stack(codes, axis=1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Sums the codes' vectors: int [B, K, T] -> float32 [B, T, D].

        K can be less than the number of codebooks; then only the first K are used and the sum is
        coarser. A code of -1 means that the codebook is not used, so rows of one batch can use
        different numbers of codebooks.
        """
        embed = self.embed[...].astype(jnp.float32)
        used = (codes >= 0)[..., None]
        vectors = [jnp.where(used[:, k], embed[k][codes[:, k]], 0) for k in range(codes.shape[1])]
        return sum(vectors[1:], start=vectors[0])
