"""HTSAT, CLAP's audio tower: a Swin transformer that sees the spectrum of 10 s as a square image.

The four quarters of the time are stacked along the bands, which makes 256 x 256 pixels, and patches
of 4 x 4 pixels make 64 x 64 tokens. Four stages follow; each halves the image in both directions.
Attention stays within windows of 8 x 8 tokens. Every second block moves the windows by half their
size, around the edges.

Tokens are kept in the order of the windows, [B, windows, 64, D], because everything except the
moves treats all tokens or all windows alike.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import HtsatConfig
from musicgen_jax.metrics.clap_audio import BANDS, FRAMES
from musicgen_jax.metrics.norm import Norm, gelu
from musicgen_jax.nn.axes import aligned
from musicgen_jax.nn.linear import Linear

WINDOW = 8
PATCH = 4
_SHIFT = WINDOW // 2
_EPSILON = 1e-5  # of the norms
_QUARTERS = 4
_TIME = 1024  # frames after resizing
_SIDE = 64  # tokens of the first stage


class BandNorm(nnx.Module):
    """Batch norm with fixed statistics: each band has its own mean and variance."""

    def __init__(self):
        self.scale, self.bias = nnx.Param(jnp.ones(BANDS)), nnx.Param(jnp.zeros(BANDS))
        self.mean, self.variance = nnx.Param(jnp.zeros(BANDS)), nnx.Param(jnp.ones(BANDS))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., bands]` to `[..., bands]`."""
        scale = self.scale[...] * jax.lax.rsqrt(self.variance[...] + 1e-5)
        mean, scale, bias = (aligned(each, x) for each in (self.mean[...], scale, self.bias[...]))
        return (x - mean) * scale + bias


class Block(nnx.Module):
    """`x += attention(norm(x)); x += feed-forward(norm(x))` within windows.

    Args:
      dim: D.
      num_heads: N.
      param_dtype: of the stored matrices.
      rngs: stream `params` is used.
    """

    def __init__(self, dim: int, num_heads: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        types: Any = {"use_bias": True, "param_dtype": param_dtype, "rngs": rngs}
        self.num_heads = num_heads
        self.norm1, self.norm2 = Norm(dim, _EPSILON), Norm(dim, _EPSILON)
        self.qkv, self.out = Linear(dim, 3 * dim, **types), Linear(dim, dim, **types)
        self.positions = nnx.Param(jnp.zeros(((2 * WINDOW - 1) ** 2, num_heads)))
        self.linear1 = Linear(dim, 4 * dim, **types)
        self.linear2 = Linear(4 * dim, dim, **types)

    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        """Applies the block.

        Args:
          x: float32 [B, windows, 64, D].
          mask: float32 [windows, 1, 64, 64], added to the scores.

        Returns:
          float32 [B, windows, 64, D].
        """
        B, windows, S, D = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(B, windows, S, 3, self.num_heads, -1)
        q, k, v = (qkv[:, :, :, i] for i in range(3))
        scores = jnp.einsum("bwsnh,bwtnh->bwnst", q * q.shape[-1] ** -0.5, k)
        scores = scores + aligned(
            self.positions[...][relative_positions()].transpose(2, 0, 1), scores
        )
        if mask is not None:
            scores = scores + aligned(mask, scores)
        seen = jnp.einsum("bwnst,bwtnh->bwsnh", jax.nn.softmax(scores, axis=-1), v)
        x = x + self.out(seen.reshape(B, windows, S, D))
        return x + self.linear2(gelu(self.linear1(self.norm2(x))))


class Stage(nnx.Module):
    """Blocks, and for all but the last stage what makes one token of four.

    Args:
      dim: D.
      num_heads: N.
      depth: number of blocks.
      merge: whether four tokens become one, of twice the width.
      param_dtype: of the stored matrices.
      rngs: stream `params` is used.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        depth: int,
        *,
        merge: bool,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        types: Any = {"param_dtype": param_dtype, "rngs": rngs}
        self.blocks = nnx.List([Block(dim, num_heads, **types) for _ in range(depth)])
        self.merge_norm = Norm(4 * dim, _EPSILON) if merge else None
        self.merge = Linear(4 * dim, 2 * dim, **types) if merge else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Float32 image [B, H, H, D] to [B, H / 2, H / 2, 2 D], or of the same shape."""
        side = x.shape[1]
        mask = moved_mask(side) if side > WINDOW else None  # a single window cannot move
        x = to_windows(x)
        for i, block in enumerate(self.blocks):
            if i % 2 and mask is not None:
                x = to_windows(jnp.roll(from_windows(x), (-_SHIFT, -_SHIFT), (1, 2)))
                x = block(x, mask)
                x = to_windows(jnp.roll(from_windows(x), (_SHIFT, _SHIFT), (1, 2)))
            else:
                x = block(x, None)
        x = from_windows(x)
        if self.merge is None or self.merge_norm is None:
            return x
        B, H, _, D = x.shape
        # The order of the four is that of columns, then rows.
        x = x.reshape(B, H // 2, 2, H // 2, 2, D).transpose(0, 1, 3, 4, 2, 5)
        return self.merge(self.merge_norm(x.reshape(B, H // 2, H // 2, 4 * D)))


class Htsat(nnx.Module):
    """The audio tower.

    Args:
      config: sizes.
      param_dtype: of the stored matrices.
      rngs: stream `params` is used.
    """

    def __init__(self, config: HtsatConfig, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        types: Any = {"param_dtype": param_dtype, "rngs": rngs}
        self.band_norm = BandNorm()
        self.patches = Linear(PATCH**2, config.dim, use_bias=True, **types)
        self.patch_norm = Norm(config.dim, _EPSILON)
        sizes = zip(config.widths, config.num_heads, config.depths, strict=True)
        self.stages = nnx.List(
            [Stage(*size, merge=stage < 3, **types) for stage, size in enumerate(sizes)]
        )
        self.norm = Norm(config.widths[-1], _EPSILON)

    def __call__(self, spectrum: jax.Array) -> jax.Array:
        """Embeds pieces.

        Args:
          spectrum: float32 [B, 1001, 64] in dB.

        Returns:
          float32 [B, 8 dim], the mean over the last tokens.
        """
        x = jnp.einsum("st,btc->bsc", resizing(), self.band_norm(spectrum))
        # Time is quarter, patch, column of the patch; a band is patch, row of the patch.
        x = x.reshape(-1, _QUARTERS, _SIDE, PATCH, BANDS // PATCH, PATCH)
        x = x.transpose(0, 1, 4, 2, 5, 3).reshape(-1, _SIDE, _SIDE, PATCH**2)
        x = self.patch_norm(self.patches(x))
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).mean((1, 2))


def to_windows(x: jax.Array) -> jax.Array:
    """An image [B, H, H, D] as [B, windows, 64, D]."""
    B, H, _, D = x.shape
    x = x.reshape(B, H // WINDOW, WINDOW, H // WINDOW, WINDOW, D)
    return x.swapaxes(2, 3).reshape(B, -1, WINDOW**2, D)


def from_windows(x: jax.Array) -> jax.Array:
    """The inverse of `to_windows`."""
    B, windows, _, D = x.shape
    count = round(windows**0.5)
    x = x.reshape(B, count, count, WINDOW, WINDOW, D)
    return x.swapaxes(2, 3).reshape(B, count * WINDOW, count * WINDOW, D)


@functools.cache
def resizing() -> np.ndarray:
    """The matrix of the bicubic resize in time, float32 [1024, 1001].

    Four weights a row, of Keys' kernel with a = -0.75; the first and the last frame stay where they
    are and also replace the frames beyond them.
    """
    places = np.arange(_TIME) * (FRAMES - 1) / (_TIME - 1)
    whole = np.floor(places).astype(int)
    matrix = np.zeros((_TIME, FRAMES))
    for neighbour in range(-1, 3):
        frames = np.clip(whole + neighbour, 0, FRAMES - 1)
        np.add.at(matrix, (np.arange(_TIME), frames), _keys(places - whole - neighbour))
    return matrix.astype(np.float32)


def _keys(distance: np.ndarray) -> np.ndarray:
    a, x = -0.75, np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


@functools.cache
def relative_positions() -> np.ndarray:
    """Row of the table of positions for each pair of tokens of a window, int [64, 64]."""
    rows, columns = np.divmod(np.arange(WINDOW**2), WINDOW)
    down = rows[:, None] - rows + WINDOW - 1
    right = columns[:, None] - columns + WINDOW - 1
    return down * (2 * WINDOW - 1) + right


@functools.cache
def moved_mask(side: int) -> np.ndarray:
    """-100 between tokens of a moved window that are not neighbours: float32 [windows, 1, 64, 64].

    At the edges a moved window joins tokens from opposite sides of the image.
    """
    at = np.arange(side)
    region = (at >= side - WINDOW).astype(int) + (at >= side - _SHIFT)
    regions = 3 * region[:, None] + region
    windows = regions.reshape(side // WINDOW, WINDOW, -1, WINDOW).swapaxes(1, 2)
    windows = windows.reshape(-1, WINDOW**2)
    apart = windows[:, :, None] != windows[:, None, :]
    return np.where(apart, np.float32(-100), np.float32(0))[:, None]
