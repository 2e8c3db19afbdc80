"""The training examples that go from the data to the loss."""

import dataclasses
from typing import Any

import jax

Array = Any  # a NumPy array on the host, a JAX array on the devices


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples for one training step. A field is None if the model or the data does not have it.

    Attributes:
      codes: int32 [B, K, T].
      ids: int32 [B, L], tokens of the prompts.
      mask: bool [B, L], False for padding.
      chroma: float32 [B, T', bins], the melodies of a melody model.
      style: int32 [B, books, P], codes of the style excerpts; -1 where a codebook is not used.
      has_audio: bool [B], False for examples without a melody or style.
      counted: bool [B, T], False for frames that the loss leaves out.
      labels: int32 [B, A, T], -1 for an unknown label; see `LMTrainConfig.label_classes`.
    """

    codes: Array
    ids: Array
    mask: Array
    chroma: Array | None = None
    style: Array | None = None
    has_audio: Array | None = None
    counted: Array | None = None
    labels: Array | None = None
