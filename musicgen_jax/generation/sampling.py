"""From logits to tokens: guidance, temperature, top-k, top-p. Pure functions, all in float32.

Both filters are thresholds found on the bits of the logits, not by sorting: a sort of 4 x 2048
logits costs more than a layer of the model, a few passes of counting cost next to nothing. Equal
logits share one fate: either all of them pass a filter or none.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Form:
    """What is compiled into the sampler; the numbers it works with are arguments.

    Attributes:
      greedy: take the likeliest token, ignore the rest.
      top_k: keep the k likeliest (and what equals the k-th); 0 keeps all.
      nucleus: keep the likeliest tokens until they hold `top_p` of the mass.
    """

    greedy: bool = False
    top_k: int = 250
    nucleus: bool = False


def guide(
    logits: jax.Array,
    cfg_coef: jax.Array | float,
    cfg_coef_beta: jax.Array | float | None = None,
) -> jax.Array:
    """Classifier-free guidance: `null + (conditional - null) * cfg_coef`.

    Double guidance first moves the condition from what audio alone asks for towards the text, or
    beyond it: `audio + (conditional - audio) * cfg_coef_beta` takes the conditional rows' place
    (arxiv.org/abs/2407.12563, section 4.3).

    Args:
      logits: `[2B, ...]`, the conditional rows, then the null rows; with double guidance
        `[3B, ...]`, between them the rows that know the audio but not the text.
      cfg_coef: 1 is the condition itself.
      cfg_coef_beta: of double guidance, None for ordinary guidance, which 1 amounts to.

    Returns:
      `[B, ...]`.
    """
    if cfg_coef_beta is None:
        conditional, null = jnp.split(logits, 2)
    else:
        conditional, audio, null = jnp.split(logits, 3)
        conditional = audio + (conditional - audio) * cfg_coef_beta
    return null + (conditional - null) * cfg_coef


def sample(
    logits: jax.Array,
    keys: jax.Array,
    form: Form,
    temperature: jax.Array | float = 1.0,
    top_p: jax.Array | float = 0.0,
) -> jax.Array:
    """Draws one token per book; each row draws from its own key.

    Temperature, then top-k, then top-p on what top-k left: the filters combine, as in
    transformers. (audiocraft ignores top_k where top_p is given; pass top_k 0 for that.)

    Args:
      logits: `[B, K, V]`.
      keys: B typed keys.
      form: which filters there are.
      temperature: above 0.
      top_p: mass of the nucleus, used if `form.nucleus`.

    Returns:
      int32 `[B, K]`.
    """
    logits = logits.astype(jnp.float32)
    if form.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if form.top_k:
        logits = jnp.where(top_k_mask(logits, form.top_k), logits, -jnp.inf)
    if form.nucleus:
        logits = jnp.where(top_p_mask(logits, top_p), logits, -jnp.inf)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)


def top_k_mask(logits: jax.Array, k: int, *, bits: int | None = None) -> jax.Array:
    """Every logit of at least the k-th largest, as bool `[..., V]`; ties can make it more than k.

    Args:
      logits: float32 `[..., V]`.
      k: at least 1; V or more keeps all.
      bits: of the threshold settled in one pass, see `_largest`.
    """
    order = _sortable(logits)
    k = min(k, logits.shape[-1])

    def holds(thresholds: jax.Array) -> jax.Array:
        return (order[..., None, :] >= thresholds[..., None]).sum(-1) >= k

    return order >= _largest(holds, logits.shape[:-1], bits)


def top_p_mask(logits: jax.Array, p: jax.Array | float, *, bits: int | None = None) -> jax.Array:
    """Every token with at most `p` of the mass strictly above it, as bool `[..., V]`.

    The likeliest token always stays.

    Args:
      logits: float32 `[..., V]`, -inf for tokens already out.
      p: between 0 and 1.
      bits: of the threshold settled in one pass, see `_largest`.
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

    The number is settled some bits at a time, from the highest: of all values that these bits can
    have, as many hold as the right one says. One bit at a time does the least work, which a CPU
    asks for. An accelerator has lanes to spare and waits for the start of every pass: there eight
    passes of four bits beat 32 of one.

    Args:
      holds: `[..., N]` to bool `[..., N]`; true up to some number and false above it.
      shape: `[...]`.
      bits: settled in one pass, a divisor of 32; None for 1 on a CPU and 4 elsewhere.

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
        digit = holds(found | (digits << shift)).sum(-1, keepdims=True, dtype=jnp.uint32)
        return found | (digit << shift)

    # A loop is one more thing that a GPU's host has to start over and over.
    return jax.lax.fori_loop(
        0, 32 // bits, settle, jnp.zeros((*shape, 1), jnp.uint32), unroll=bits > 1
    )
