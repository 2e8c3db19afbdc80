"""From stored weights to the parts of a model, straight to their final dtypes and devices."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from musicgen_jax.config import EncodecConfig, LMConfig, MertConfig, MusicGenConfig
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.mert import Mert
from musicgen_jax.nn.shapes import filled, module_shapes
from musicgen_jax.nn.style_conditioner import StyleConditioner
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.runtime import sharding, tuning
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.tokenizer import Tokenizer

Part = TypeVar("Part", bound=nnx.Module)
Weights = Callable[[str, dict[str, Any]], dict[str, Any]]
TextToTokens = Callable[[Sequence[str | None]], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a `MusicGen`.

    Attributes:
      config: the architecture.
      t5: text encoder.
      lm: language model, with its conditioners.
      encodec: codec.
      tokenizer: B texts to ids int32 [B, L] and mask bool [B, L]; a row that is None or "" has
        an all-False mask.
      mert: extracts the features of a style; None except in a style model.
    """

    config: MusicGenConfig
    t5: T5Encoder
    lm: LM
    encodec: Encodec
    tokenizer: TextToTokens
    mert: Mert | None = None

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the parts lie on; None without a mesh."""
        return sharding.mesh_of(self.lm)


def load_parts(
    folder: Path,
    config: MusicGenConfig,
    *,
    dtype: DTypeLike | None,
    cache_dtype: DTypeLike | None,
    mesh: Mesh | None,
) -> Parts:
    """The parts of the model in a folder.

    Args:
      folder: of the model, as `checkpoint` writes it.
      config: of that model, from `checkpoint.load_config`.
      dtype: of the language model, as in `MusicGen.from_pretrained`.
      cache_dtype: of its key-value cache, as in `MusicGen.from_pretrained`.
      mesh: devices to load onto, or None for the first one.
    """
    tokenizer = Tokenizer(folder / checkpoint.TOKENIZER)
    weights = partial(checkpoint.load_params, folder)
    types = {"dtype": dtype, "cache_dtype": cache_dtype}
    return build_parts(config, weights, tokenizer, **types, mesh=mesh)


def load_float_lm(folder: Path, config: MusicGenConfig) -> dict[str, Any]:
    """The language model's parameters as float32, nested dicts of arrays."""
    state = nnx.state(module_shapes(LM, config.lm), nnx.Param)
    return checkpoint.load_params(folder, "lm", nnx.to_pure_dict(state))


def load_style_conditioner(folder: Path, config: LMConfig) -> StyleConditioner:
    """The conditioner of the style model in a folder, without the rest of the language model."""
    assert config.style is not None
    name = "style_conditioner"

    def read(abstract: dict[str, Any]) -> dict[str, Any]:
        return checkpoint.load_params(folder, "lm", {name: abstract}, partial=True)[name]

    return filled(module_shapes(StyleConditioner, config.style, config.dim), read)


def load_mert(folder: Path, config: MertConfig) -> Mert:
    """The MERT of the style model in a folder."""
    return filled(module_shapes(Mert, config), partial(checkpoint.load_params, folder, "mert"))


def load_encodec(folder: Path, config: EncodecConfig) -> Encodec:
    """The codec in a folder, in float32."""
    read = partial(checkpoint.load_params, folder, "encodec")
    return filled(module_shapes(Encodec, config), read)


def build_parts(
    config: MusicGenConfig,
    weights: Weights,
    tokenizer: TextToTokens,
    *,
    dtype: DTypeLike | None = jnp.float32,
    cache_dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
) -> Parts:
    """The parts of a model with weights from anywhere; the arguments are `MusicGen.build`'s."""
    dtype, param_dtype = tuning.lm_dtypes(dtype)
    chosen = tuning.tuning()
    if (cache := tuning.cache_dtype(cache_dtype)) is not None:
        chosen = dataclasses.replace(chosen, cache_dtype=cache.name)
    if mesh is not None:
        chosen = chosen.spread(config.lm.num_heads, mesh.shape[sharding.MODEL])
    types = {"dtype": dtype, "param_dtype": param_dtype, "tuning": chosen}

    def fill(component: str, shapes: Part) -> Part:
        sizes = getattr(config, component)

        def arranged(abstract: dict[str, Any]) -> dict[str, Any]:
            stored = sharding.as_stored(component, sizes, abstract, mesh)
            return sharding.arrange(component, sizes, weights(component, stored), mesh)

        return filled(shapes, arranged)

    return Parts(
        config,
        fill("t5", module_shapes(T5Encoder, config.t5)),
        fill("lm", module_shapes(LM, config.lm, **types)),
        fill("encodec", module_shapes(Encodec, config.encodec)),
        tokenizer,
        fill("mert", module_shapes(Mert, config.mert)) if config.mert else None,
    )
