"""The part of the language model's table for the style conditioner, in forward order."""

import numpy as np

from musicgen_jax.config import StyleConfig
from musicgen_jax.convert.encodec import codebook_statistics
from musicgen_jax.convert.rules import STACK, Remade, Rule, Table, Transform, norm, with_bias
from musicgen_jax.convert.settings import Part
from musicgen_jax.errors import UserError

_WAVE = "condition_provider.conditioners.self_wav"
PREFIX = f"{_WAVE}."
KEY = f"{_WAVE}.embed.weight"  # a style conditioner has this key; a melody conditioner does not
_HEADS = {"xsmall": 8, "default": 8, "large": 16}  # by audiocraft's `transformer_scale`


def inverse_deviation(variance: np.ndarray) -> np.ndarray:
    """Batch norm's running variance -> its factor. The file rounds the variance to half."""
    return 1 / np.sqrt(variance.astype(np.float32) + np.float32(1e-5))


def _variance(scale: np.ndarray) -> tuple[np.ndarray]:
    """A variance with exactly this inverse deviation, if one of the nearest numbers has it."""
    with np.errstate(over="ignore", divide="ignore"):
        best = (1 / np.square(scale.astype(np.float64)) - 1e-5).astype(np.float32)
    nearest = best
    with np.errstate(invalid="ignore", divide="ignore"):
        for towards in (-np.inf, np.inf):
            candidate = nearest
            for _ in range(4):
                candidate = np.nextafter(candidate, np.float32(towards))
                best = np.where(inverse_deviation(best) == scale, best, candidate)
    return (best,)


_LAYER, _TO = f"{_WAVE}.transformer.layers.{{i}}", "style_conditioner/transformer/layers/{i}"
_BOOK = f"{_WAVE}.rvq.vq.layers.{{k}}._codebook"
RULES = (
    *with_bias("style_conditioner/embed", f"{_WAVE}.embed"),
    *norm(f"{_TO}/norm1", f"{_LAYER}.norm1"),
    Rule(f"{_TO}/self_attn/in_proj/weight", f"{_LAYER}.self_attn.in_proj_weight"),
    Rule(f"{_TO}/self_attn/out_proj/weight", f"{_LAYER}.self_attn.out_proj.weight"),
    *norm(f"{_TO}/norm2", f"{_LAYER}.norm2"),
    Rule(f"{_TO}/linear1/weight", f"{_LAYER}.linear1.weight"),
    Rule(f"{_TO}/linear2/weight", f"{_LAYER}.linear2.weight"),
    Rule("style_conditioner/batch_norm/mean", f"{_WAVE}.batch_norm.running_mean"),
    Rule(
        "style_conditioner/batch_norm/scale",
        f"{_WAVE}.batch_norm.running_var",
        Transform(inverse_deviation, _variance),
    ),
    Rule("style_conditioner/rvq/embed", f"{_BOOK}.embed", STACK),
    *with_bias("style_conditioner/output_proj", f"{_WAVE}.output_proj"),
)
REMADE = (
    *codebook_statistics(_BOOK, "style_conditioner/rvq/embed"),
    Remade(
        f"{_WAVE}.batch_norm.num_batches_tracked",
        "the state of training: how many batches the statistics have seen",
        "style_conditioner/batch_norm/mean",
        lambda mean: np.zeros((), np.int64),
    ),
)


def derive_config(part: Part, table: Table) -> StyleConfig:
    """Takes sizes from the tensors, and heads and downsampling from the settings.

    Args:
      part: the language model.
      table: the language model's rules, including the rules of this file.

    Raises:
      UserError: this kind of conditioner is not supported, or tensors that give its size are
        missing.
    """
    settings = "conditioners.self_wav.style"
    part.require(f"{settings}.transformer_scale", "default", *_HEADS)

    def shape(path: str, axes: int) -> tuple[int, ...]:
        found = table.shape(part.tensors, f"style_conditioner/{path}")
        if len(found) != axes or 0 in found:
            raise UserError(f"{part.origin}: what makes {path} must have {axes} axes, not {found}")
        return found

    dim, feature_dim = shape("embed/weight", 2)
    ffn_dim, _ = shape("transformer/layers/0/linear1/weight", 2)
    bins, _ = shape("rvq/embed", 2)
    default = StyleConfig()
    return StyleConfig(
        feature_dim=feature_dim,
        dim=dim,
        num_heads=_HEADS[part.settings.get(f"{settings}.transformer_scale", "default")],
        num_layers=table.count(part.tensors, f"{_LAYER}.linear1.weight"),
        ffn_dim=ffn_dim,
        n_q=table.count(part.tensors, f"{_BOOK}.embed"),
        bins=bins,
        ds_factor=part.number(f"{settings}.ds_factor", default.ds_factor),
    )
