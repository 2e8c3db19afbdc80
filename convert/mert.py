"""MERT's table, in the order of the forward pass. Its keys are those of transformers' HuBERT."""

import numpy as np

from musicgen_jax.config import MertConfig
from musicgen_jax.convert.encodec import fold, unfold
from musicgen_jax.convert.rules import Remade, Rule, Table, Transform, norm, with_bias
from musicgen_jax.convert.settings import Part
from musicgen_jax.errors import UserError

KEY = "encoder.pos_conv_embed.conv.bias"  # no other component has it


def _folded(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Weight norm is along the last axis here: one magnitude per tap.
    return fold(g.T, v.T)  # [k, in, out]


def _unfolded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    g, v = unfold(weight)
    return g.T, v.T


# From torch's convolution [out, in, k] to [k, in, out].
kernel = Transform(
    lambda weight: np.ascontiguousarray(weight.transpose(2, 1, 0)),
    lambda weight: (weight.transpose(2, 1, 0),),
)
# The same from a magnitude [1, 1, k] and a direction [out, in, k], float32.
folded = Transform(_folded, _unfolded)

_CONV = "feature_extractor.conv_layers"
_POSITIONS = "encoder.pos_conv_embed.conv"
_LAYER = "encoder.layers.{i}"
TABLE = Table(
    rules=(
        Rule("convolutions/{i}/weight", f"{_CONV}.{{i}}.conv.weight", kernel),
        *norm("conv_norm", f"{_CONV}.0.layer_norm"),
        *norm("feature_norm", "feature_projection.layer_norm"),
        *with_bias("projection", "feature_projection.projection"),
        Rule("positions/weight", (f"{_POSITIONS}.weight_g", f"{_POSITIONS}.weight_v"), folded),
        Rule("positions/bias", f"{_POSITIONS}.bias"),
        *norm("norm", "encoder.layer_norm"),
        *with_bias("layers/{i}/q", f"{_LAYER}.attention.q_proj"),
        *with_bias("layers/{i}/k", f"{_LAYER}.attention.k_proj"),
        *with_bias("layers/{i}/v", f"{_LAYER}.attention.v_proj"),
        *with_bias("layers/{i}/out", f"{_LAYER}.attention.out_proj"),
        *norm("layers/{i}/attention_norm", f"{_LAYER}.layer_norm"),
        *with_bias("layers/{i}/linear1", f"{_LAYER}.feed_forward.intermediate_dense"),
        *with_bias("layers/{i}/linear2", f"{_LAYER}.feed_forward.output_dense"),
        *norm("layers/{i}/ffn_norm", f"{_LAYER}.final_layer_norm"),
    ),
    aliases=(
        # torch's newer names for weight norm: original0 is the magnitude, original1 the direction.
        (r"\.parametrizations\.weight\.original0$", ".weight_g"),
        (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    ),
    remade=(
        Remade(
            "masked_spec_embed",
            "stands for masked frames, in training only",
            "projection/bias",
            np.zeros_like,
        ),
    ),
)


def derive_config(part: Part) -> MertConfig:
    """Takes sizes from the tensors, and strides, heads and groups from the settings.

    Raises:
      UserError: the network is not MERT-v1-95M's, or tensors that give its size are missing.
    """
    part.check("mert")
    shapes = {TABLE.rename(key): tensor.shape for key, tensor in part.tensors.items()}
    count = 0
    while f"{_CONV}.{count}.conv.weight" in shapes:
        count += 1
    default = MertConfig()
    try:
        convolutions = [shapes[f"{_CONV}.{i}.conv.weight"] for i in range(count)]
        dim, per_group, conv_pos_kernel = shapes[f"{_POSITIONS}.weight_v"]
        ffn_dim, _ = shapes["encoder.layers.0.feed_forward.intermediate_dense.weight"]
        return MertConfig(
            sample_rate=part.number("sample_rate", default.sample_rate),
            conv_dim=tuple(out for out, _, _ in convolutions),
            conv_kernel=tuple(k for _, _, k in convolutions),
            conv_stride=_strides(part, default.conv_stride),
            dim=dim,
            # Heads of size 64, as in the official model.
            num_heads=part.number("num_attention_heads", max(dim // 64, 1)),
            num_layers=TABLE.count(part.tensors, f"{_LAYER}.final_layer_norm.weight"),
            ffn_dim=ffn_dim,
            conv_pos_kernel=conv_pos_kernel,
            conv_pos_groups=dim // per_group,
        )
    except UserError:
        raise
    except (LookupError, ValueError, ArithmeticError) as error:
        raise UserError(f"{part.origin} is not MERT-v1-95M's network: {error}") from None


def _strides(part: Part, default: tuple[int, ...]) -> tuple[int, ...]:
    strides = part.settings.get("conv_stride", default)
    if not isinstance(strides, list | tuple) or not all(
        type(stride) is int and 0 < stride < 1000 for stride in strides
    ):
        raise UserError(f"{part.origin}: conv_stride must be a list of numbers, got {strides!r}")
    return tuple(strides)
