"""PaSST's table, in the order of the forward pass. Its keys are hear21passt's."""

import numpy as np

from musicgen_jax.config import PasstConfig
from musicgen_jax.convert.rules import Rule, Table, Transform, norm, with_bias
from musicgen_jax.convert.settings import Part
from musicgen_jax.errors import UserError

KEY = "time_new_pos_embed"  # no other component has it

# From torch's convolution [out, channels, kh, kw] to [kh, kw, 1, out]; colour channels are summed.
kernel = Transform(
    lambda weight: np.ascontiguousarray(weight.sum(1, keepdims=True).transpose(2, 3, 1, 0)),
    lambda weight: (weight.transpose(3, 2, 0, 1),),
)
over_time = Transform(lambda x: x[0, :, 0].T, lambda x: (x.T[None, :, None],))  # [1, D, 1, T]
over_bands = Transform(lambda x: x[0, :, :, 0].T, lambda x: (x.T[None, :, :, None],))
one_by_one = Transform(  # [1, 1, D] twice <-> [2, D]
    lambda cls, dist: np.concatenate([cls[0], dist[0]]), lambda x: (x[None, :1], x[None, 1:])
)
pair = Transform(lambda x: x[0], lambda x: (x[None],))

_TO, _BLOCK = "blocks/{i}", "blocks.{i}"

TABLE = Table(
    rules=(
        Rule("patches", "patch_embed.proj.weight", kernel),
        Rule("patches_bias", "patch_embed.proj.bias"),
        Rule("time_positions", KEY, over_time),
        Rule("band_positions", "freq_new_pos_embed", over_bands),
        Rule("tokens", ("cls_token", "dist_token"), one_by_one),
        Rule("token_positions", "new_pos_embed", pair),
        *norm(f"{_TO}/norm1", f"{_BLOCK}.norm1"),
        *with_bias(f"{_TO}/qkv", f"{_BLOCK}.attn.qkv"),
        *with_bias(f"{_TO}/out", f"{_BLOCK}.attn.proj"),
        *norm(f"{_TO}/norm2", f"{_BLOCK}.norm2"),
        *with_bias(f"{_TO}/linear1", f"{_BLOCK}.mlp.fc1"),
        *with_bias(f"{_TO}/linear2", f"{_BLOCK}.mlp.fc2"),
        *norm("norm", "norm"),
        *norm("head_norm", "head.0"),
        *with_bias("head", "head.1"),
    ),
    ignored={r"head_dist\.(weight|bias)": "the two tokens are averaged before one head"},
)


def derive_config(part: Part) -> PasstConfig:
    """Sizes from the tensors.

    Raises:
      UserError: the network is not PaSST.
    """
    shapes = {key: tensor.shape for key, tensor in part.tensors.items()}
    try:
        classes, dim = shapes["head.1.weight"]
        return PasstConfig(
            time_positions=shapes[KEY][3],
            band_positions=shapes["freq_new_pos_embed"][2],
            dim=dim,
            # Heads of size 64, as in all published models.
            num_heads=max(dim // 64, 1),
            num_layers=TABLE.count(part.tensors, "blocks.{i}.norm1.weight"),
            ffn_dim=shapes["blocks.0.mlp.fc1.bias"][0],
            num_classes=classes,
        )
    except (LookupError, ValueError) as error:
        raise UserError(f"{part.origin} is not PaSST's network: {error}") from None
