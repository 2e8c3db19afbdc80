"""From logits to tokens: guidance, temperature, top-k, top-p. Pure functions, all in float32.

Both filters are thresholds found on the bits of the logits, not by sorting: sorting 4 x 2048 logits
costs more than a layer of the model, while a few passes of counting cost next to nothing. A filter
keeps either all of several equal logits or none.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax.generation.settings import Sampling
from musicgen_jax.nn.axes import aligned


@dataclasses.dataclass(frozen=True)
class Mode:
    """Which parts of the sampler a program contains; the numbers are arguments.

    A program with every part serves all settings. A program without a part is faster.

    Attributes:
      greedy: all rows take the most likely token.
      top_k: some row has a `top_k`.
      nucleus: some row has a `top_p`.
    """

    greedy: bool = False
    top_k: bool = True
    nucleus: bool = False

    @classmethod
    def of(cls, rows: Sequence[Sampling]) -> "Mode":
        """The smallest program for a batch with these settings."""
        if all(row.greedy for row in rows):
            return cls(greedy=True, top_k=False)
        return cls(
            top_k=any(row.top_k > 0 for row in rows),
            nucleus=any(0 < row.top_p < 1 for row in rows),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Numbers:
    """The settings of every row of a batch, as arrays `[B]`; see `Sampling`."""

    temperature: jax.Array | np.ndarray  # float32; 0 takes the most likely token
    top_k: jax.Array | np.ndarray  # int32; 0 for all
    top_p: jax.Array | np.ndarray  # float32; 0 or 1 for all
    cfg_coef: jax.Array | np.ndarray  # float32
    cfg_coef_beta: jax.Array | np.ndarray  # float32; 1 for ordinary guidance

    @classmethod
    def of(cls, rows: Sequence[Sampling]) -> "Numbers":
        """The numbers of B rows, on the host."""
        beta = [1.0 if row.cfg_coef_beta is None else row.cfg_coef_beta for row in rows]
        return cls(
            np.array([_temperature(row) for row in rows], np.float32),
            np.array([min(row.top_k, _MAX_INT32) for row in rows], np.int32),
            np.array([max(row.top_p, _TINY) if row.top_p else 0 for row in rows], np.float32),
            np.array([row.cfg_coef for row in rows], np.float32),
            np.array(beta, np.float32),
        )


_MAX_INT32 = np.iinfo(np.int32).max
_TINY = float(np.finfo(np.float32).tiny)
_COLDEST = 1e-20  # below it logits would overflow; long before, the most likely token is certain


def _temperature(row: Sampling) -> float:
    return 0.0 if row.greedy or row.temperature < _COLDEST else row.temperature


def guide(logits: jax.Array, numbers: Numbers) -> jax.Array:
    """Classifier-free guidance: `null + (conditional - null) * cfg_coef`.

    Double guidance first moves the conditional logits from those for the audio alone towards those
    for the text, or beyond: `audio + (conditional - audio) * cfg_coef_beta` takes the place of the
    conditional logits (arxiv.org/abs/2407.12563, section 4.3).

    Args:
      logits: float32 `[1 to 3, B, ...]`: the conditional logits; with guidance, then the null ones;
        with double guidance, between these two, the ones that know the audio but not the text.
      numbers: of B rows. A row with `cfg_coef` 1 and without double guidance keeps its conditional
        logits bit for bit.

    Returns:
      `[B, ...]`.
    """
    conditional, *others = logits
    if not others:
        return conditional
    coef, beta = (_per_row(x, conditional) for x in (numbers.cfg_coef, numbers.cfg_coef_beta))
    asked = conditional
    if len(others) == 2:
        asked = others[0] + (conditional - others[0]) * beta
        asked = jnp.where(beta == 1, conditional, asked)
    guided = others[-1] + (asked - others[-1]) * coef
    return jnp.where((coef == 1) & (beta == 1), conditional, guided)


def sample(logits: jax.Array, keys: jax.Array, numbers: Numbers, mode: Mode) -> jax.Array:
    """Draws one token per book; each row draws from its own key.

    Temperature, then top-k, then top-p on what top-k left: the filters combine, as in
    transformers. (audiocraft ignores top_k if top_p is set; pass top_k 0 for that.)

    Args:
      logits: `[B, K, V]`.
      keys: B typed keys.
      numbers: of B rows.
      mode: the parts that the program contains.

    Returns:
      int32 `[B, K]`.
    """
    logits = logits.astype(jnp.float32)
    if mode.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    plain = logits
    temperature, top_k, top_p = (
        _per_row(x, logits) for x in (numbers.temperature, numbers.top_k, numbers.top_p)
    )
    logits = logits / jnp.where(temperature > 0, temperature, 1)
    if mode.top_k:
        kept = jnp.where(top_k > 0, top_k, logits.shape[-1])
        logits = jnp.where(top_k_mask(logits, kept), logits, -jnp.inf)
    if mode.nucleus:
        logits = _nucleus(logits, top_p)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
    # One argmax for all rows: several devices exchange its result alone.
    scores = jnp.where(temperature > 0, logits + noise, plain)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def _nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """The logits, -inf where a row's `top_p` removes a token; 0 or 1 removes none."""
    asked = (top_p > 0) & (top_p < 1)
    # The rounded sum over all tokens may exceed 1: a row without top_p needs a limit above 1.
    mass = jnp.where(asked, top_p, 2)

    def kept(logits: jax.Array) -> jax.Array:
        return jnp.where(top_p_mask(logits, mass), logits, -jnp.inf)

    def kept_if_asked(logits: jax.Array) -> jax.Array:
        return jax.lax.cond(asked.any(), kept, lambda logits: logits, logits)

    # Slots take every setting, and most clips have no top_p. An accelerator would have to ask its #
    # host which branch to take.
    return jax.lax.platform_dependent(logits, cpu=kept_if_asked, default=kept)


def _per_row(x: jax.Array | np.ndarray, like: jax.Array) -> jax.Array:
    """`[B]` as `[B, 1, ...]`, with as many axes as `like`."""
    return jnp.reshape(x, (-1, *(1,) * (like.ndim - 1)))


def top_k_mask(logits: jax.Array, k: jax.Array | int, *, bits: int | None = None) -> jax.Array:
    """The logits that are at least the k-th largest, as bool `[..., V]`; with ties more than k.

    Args:
      logits: float32 `[..., V]`.
      k: at least 1, one number or `[..., 1]`; V or more keeps all.
      bits: how many bits of the threshold one pass settles, see `_largest`.
    """
    order = _sortable(logits)
    k = jnp.minimum(k, logits.shape[-1])

    def holds(thresholds: jax.Array) -> jax.Array:
        reached = order[..., None, :] >= thresholds[..., None]
        return reached.sum(-1, dtype=jnp.int32) >= k

    return order >= _largest(holds, logits.shape[:-1], bits)


def top_p_mask(logits: jax.Array, p: jax.Array | float, *, bits: int | None = None) -> jax.Array:
    """Every token with at most `p` of the mass strictly above it, as bool `[..., V]`.

    The most likely token always stays.

    Args:
      logits: float32 `[..., V]`, -inf for tokens that another filter removed.
      p: one number or `[..., 1]`; above 1 keeps all.
      bits: how many bits of the threshold one pass settles, see `_largest`.
    """
    order, mass = _sortable(logits), jax.nn.softmax(logits, axis=-1)

    def excess(thresholds: jax.Array) -> jax.Array:
        above = order[..., None, :] > thresholds[..., None]
        return jnp.where(above, mass[..., None, :], 0).sum(-1) > p

    last_out = _largest(excess, logits.shape[:-1], bits)
    return (order > last_out) | ~excess(last_out)


def _sortable(x: jax.Array) -> jax.Array:
    """float32 to uint32 with the same order; both zeros are one number."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _largest(
    holds: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], bits: int | None
) -> jax.Array:
    """The largest uint32 for which `holds`; 0 if there is none.

    The number is settled a few bits at a time, from the highest. `holds` is monotone, so the count
    of the candidate digits that satisfy it is the digit. One bit at a time does the least work,
    which suits a CPU. An accelerator has lanes to spare, and starting a pass is what costs: eight
    passes of four bits beat 32 of one.

    Args:
      holds: `[..., N]` to bool `[..., N]`; true up to some number and false above it.
      shape: `[...]`.
      bits: how many one pass settles, a divisor of 32; None for 1 on a CPU and 4 elsewhere.

    Returns:
      uint32 `[..., 1]`.
    """
    if bits is None:
        return jax.lax.platform_dependent(
            cpu=partial(_largest, holds, shape, 1), default=partial(_largest, holds, shape, 4)
        )
    digits = jnp.arange(1, 1 << bits, dtype=jnp.uint32)

    def settle(i: int, found: jax.Array) -> jax.Array:
        shift = jnp.uint32(32 - bits) - jnp.uint32(bits) * jnp.asarray(i, jnp.uint32)
        tried = found | aligned(digits << shift, found)
        digit = holds(tried).sum(-1, keepdims=True, dtype=jnp.uint32)
        return found | (digit << shift)

    # Unrolled for accelerators: the host of a GPU would have to start every pass of a loop.
    return jax.lax.fori_loop(
        0, 32 // bits, settle, jnp.zeros((*shape, 1), jnp.uint32), unroll=bits > 1
    )
