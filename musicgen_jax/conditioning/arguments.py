"""Checks of what a caller of `MusicGen` passes.

Every function raises UserError: one line that names the fault and what would be right.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from musicgen_jax.config import CACHE_DTYPES, DTYPES
from musicgen_jax.errors import UserError, is_int, is_number

DEFAULT_TOP_K = 250
Audio = np.ndarray | jax.Array


def lm_dtypes(dtype: DTypeLike | None) -> tuple[np.dtype, np.dtype]:
    """What the language model computes in, and what its matrices are kept in.

    By default, and around int8 matrices, float32 on a CPU and bfloat16 elsewhere.
    """
    usual = jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    message = f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {dtype!r}"
    try:
        known = usual if dtype is None else jnp.dtype(dtype)
    except TypeError:
        raise UserError(message) from None
    if known.name not in DTYPES:
        raise UserError(message)
    return (usual if known == jnp.int8 else known), known


def cache_dtype(dtype: DTypeLike | None) -> np.dtype | None:
    """What the language model keeps its keys and values in; None leaves the choice to it."""
    try:
        known = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        known = np.dtype(object)
    if known is not None and known.name not in CACHE_DTYPES:
        names = f"{', '.join(CACHE_DTYPES[:-1])} or {CACHE_DTYPES[-1]}"
        raise UserError(f"cache_dtype must be {names}, got {dtype!r}")
    return known


def check_descriptions(descriptions: Sequence[str | None]) -> list[str | None]:
    """At least one text or None, as a list."""
    if isinstance(descriptions, str):
        raise UserError(f"descriptions must be a list of texts: [{descriptions!r}]")
    try:
        texts = list(descriptions)
    except TypeError:
        raise UserError(f"descriptions must be a list of texts, got {descriptions!r}") from None
    if not texts:
        raise UserError("descriptions is empty: give at least one, or use generate_unconditional")
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise UserError(f"a description must be a text or None, got {text!r}")
    return texts


def check_sampling(
    top_k: int,
    top_p: float,
    temperature: float,
    cfg_coef: float,
    cfg_coef_beta: float | None = None,
    *,
    card: int,
) -> None:
    """The numbers that shape sampling; `card` is the number of codes."""
    most = max(card, DEFAULT_TOP_K)  # the default suits a model of fewer codes too: all of them
    if not is_int(top_k) or not 0 <= top_k <= most:
        raise UserError(f"top_k must be an integer from 0 (all) to {most}, got {top_k!r}")
    if not is_number(top_p) or not 0 <= top_p <= 1:
        raise UserError(f"top_p must be from 0 (all) to 1, got {top_p!r}")
    if not is_number(temperature) or temperature < 0:
        raise UserError(f"temperature must be 0 (no sampling) or more, got {temperature!r}")
    if not is_number(cfg_coef):
        raise UserError(f"cfg_coef must be a finite number, got {cfg_coef!r}")
    if cfg_coef_beta is not None and not is_number(cfg_coef_beta):
        raise UserError(f"cfg_coef_beta must be a finite number or None, got {cfg_coef_beta!r}")


def check_seed(seed: int | Sequence[int], batch: int) -> int | list[int]:
    """One seed, or one for each clip, as Python integers."""
    if isinstance(seed, str) or not (is_int(seed) or isinstance(seed, Sequence | np.ndarray)):
        raise UserError(f"seed must be an integer or a list of integers, got {seed!r}")
    seeds = [seed] if is_int(seed) else list(seed)  # type: ignore[arg-type]
    for one in seeds:
        if not is_int(one) or not 0 <= one < 2**32:  # type: ignore[operator]
            raise UserError(f"a seed must be an integer from 0 to {2**32 - 1}, got {one!r}")
    if not is_int(seed) and len(seeds) != batch:
        raise UserError(f"{len(seeds)} seeds for {batch} clips: give one for each, or one integer")
    numbers = [int(one) for one in seeds]  # type: ignore[arg-type]
    return numbers[0] if is_int(seed) else numbers


def match_batch(codes: jax.Array, batch: int) -> jax.Array:
    """Codes [B, K, T], or one clip's for all: [1, K, T] to [B, K, T]."""
    if codes.shape[0] not in (1, batch):
        raise UserError(
            f"{codes.shape[0]} prompts for {batch} descriptions: give one for each, or one for all"
        )
    return jnp.broadcast_to(codes, (batch, *codes.shape[1:]))


def check_clips(
    audio: Audio | Sequence[Audio | None], sample_rate: int, what: str
) -> list[np.ndarray | None]:
    """[C, W], [B, C, W] or a list of [C, W] and None, as a list of float32 [C, W] and None."""
    if not isinstance(audio, list | tuple):
        return list(check_audio(audio, sample_rate, what))  # type: ignore[arg-type]
    if not audio:
        raise UserError(f"the list of {what}s is empty: give one array or None per clip")
    clips: list[np.ndarray | None] = []
    for one in audio:
        clip = None if one is None else check_audio(one, sample_rate, what)
        if clip is not None and len(clip) != 1:
            raise UserError(f"each {what} of a list must be [C, W], got {list(clip.shape)}")
        clips.append(None if clip is None else clip[0])
    return clips


def check_audio(audio: np.ndarray | jax.Array, sample_rate: int, what: str) -> np.ndarray:
    """The audio as float32 [B, C, W] on the host."""
    try:
        wav = np.asarray(audio)
    except ValueError:  # clips of different lengths
        raise UserError(f"the {what} must be one array [C, W] or [B, C, W]") from None
    if not jnp.issubdtype(wav.dtype, jnp.floating):
        raise UserError(f"the {what} must be float samples from -1 to 1, got {wav.dtype}")
    if wav.ndim not in (2, 3):
        raise UserError(f"the {what} must be [C, W] or [B, C, W], got the shape {list(wav.shape)}")
    if not wav.size:
        raise UserError(f"the {what} is empty: it has the shape {list(wav.shape)}")
    if wav.shape[-2] > wav.shape[-1]:
        raise UserError(
            f"the {what} must be [C, W] or [B, C, W], channels before samples: "
            f"the shape {list(wav.shape)} looks transposed"
        )
    with np.errstate(over="ignore"):
        wav = wav.astype(np.float32)
    if not np.isfinite(wav).all():
        raise UserError(f"the {what} holds NaN or infinity")
    if not is_number(sample_rate) or sample_rate != int(sample_rate) or sample_rate < 1:
        raise UserError(f"the sample rate must be a positive integer in Hz, got {sample_rate!r}")
    return wav[None] if wav.ndim == 2 else wav
