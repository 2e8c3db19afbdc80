"""VGGish's table, in the order of the forward pass. Its keys are torchvggish's.

torchvggish transposes the last feature map to [time, frequency, channel] before it flattens it. So
the columns of the first linear layer are already in our order.
"""

import numpy as np

from musicgen_jax.config import VggishConfig
from musicgen_jax.convert.rules import Table, Transform, with_bias
from musicgen_jax.convert.settings import Part
from musicgen_jax.errors import UserError

KEY = "embeddings.4.weight"  # no other component has both this key and the next one
_CONVOLUTIONS = (0, 3, 6, 8, 11, 13)  # among ReLUs and pools
_DENSE = (0, 2, 4)

# From torch's convolution [out, in, kh, kw] to [kh, kw, in, out].
kernel = Transform(
    lambda weight: np.ascontiguousarray(weight.transpose(2, 3, 1, 0)),
    lambda weight: (weight.transpose(3, 2, 0, 1),),
)

TABLE = Table(
    rules=(
        *(
            rule
            for ours, theirs in enumerate(_CONVOLUTIONS)
            for rule in with_bias(f"convolutions/{ours}", f"features.{theirs}", kernel)
        ),
        *(
            rule
            for ours, theirs in enumerate(_DENSE)
            for rule in with_bias(f"dense/{ours}", f"embeddings.{theirs}")
        ),
    ),
    ignored={r"pproc\.pca_.*": "the distance is measured before this post-processing"},
)


def is_vggish(tensors) -> bool:
    """Whether the keys are those of a torchvggish file."""
    return KEY in tensors and "features.13.weight" in tensors


def derive_config(part: Part) -> VggishConfig:
    """Sizes from the tensors.

    Raises:
      UserError: the network is not VGGish.
    """
    shapes = {key: tensor.shape for key, tensor in part.tensors.items()}
    try:
        return VggishConfig(
            channels=tuple(shapes[f"features.{i}.bias"][0] for i in _CONVOLUTIONS),
            hidden=shapes["embeddings.0.bias"][0],
            dim=shapes["embeddings.4.bias"][0],
        )
    except (LookupError, ValueError) as error:
        raise UserError(f"{part.origin} is not VGGish's network: {error}") from None
