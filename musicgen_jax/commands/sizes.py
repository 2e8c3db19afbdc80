"""How many bytes a model of a known architecture needs, without its weights."""

import dataclasses
import functools
from functools import partial

import jax
from flax import nnx

from musicgen_jax.config import EncodecConfig, LMConfig, MertConfig, MusicGenConfig, T5Config
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.mert import Mert
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.runtime import tuning
from musicgen_jax.runtime.memory import nbytes

_MODULES = {T5Config: T5Encoder, EncodecConfig: Encodec, MertConfig: Mert}


@dataclasses.dataclass(frozen=True)
class Needs:
    """Bytes on the device.

    Attributes:
      lm: weights of the language model.
      rest: weights of the text encoder, the codec and the style model's MERT, in float32.
      cache: keys and values of the window, for every row.
    """

    lm: int
    rest: int
    cache: int

    @property
    def total(self) -> int:
        """The sum. A step and the codec need working memory on top of it, about a tenth."""
        return self.lm + self.rest + self.cache


def needs(config: MusicGenConfig, dtype: str, batch: int = 1) -> Needs:
    """What a model needs to make clips as long as its window, with guidance.

    Args:
      config: the architecture.
      dtype: of the language model's matrices: "float32", "bfloat16" or "int8".
      batch: B, clips at once.
    """
    steps = round(config.max_duration * config.frame_rate) + max(config.lm.delays)
    # Layers are alike: two sizes give all others, in a tenth of the time.
    one, two = (_lm_bytes(config.lm, layers, dtype, 2 * batch, steps) for layers in (1, 2))
    more = config.lm.num_layers - 1
    lm, cache = (a + more * (b - a) for a, b in zip(one, two, strict=True))
    parts = [part for part in (config.t5, config.encodec, config.mert) if part is not None]
    return Needs(lm, sum(4 * parameters(part) for part in parts), cache)


@functools.cache
def parameters(config: T5Config | EncodecConfig | MertConfig | LMConfig) -> int:
    """The number of parameters of one network."""
    if isinstance(config, LMConfig):
        one, two = (
            _count(LM, dataclasses.replace(config, num_layers=n), **_types("float32"))
            for n in (1, 2)
        )
        return one + (config.num_layers - 1) * (two - one)
    return _count(_MODULES[type(config)], config)


def _count(module, config, **types) -> int:
    state = nnx.state(module_shapes(module, config, **types), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def _types(dtype: str) -> dict:
    compute, matrices = tuning.lm_dtypes(dtype)
    return {"dtype": compute, "param_dtype": matrices}


def _lm_bytes(config: LMConfig, layers: int, dtype: str, rows: int, steps: int) -> tuple[int, int]:
    """Bytes of the weights and of the cache, with that many layers."""
    config = dataclasses.replace(config, num_layers=layers)
    lm = module_shapes(LM, config, **_types(dtype))
    cache = jax.eval_shape(partial(lm.init_cache, rows, steps))
    return nbytes(nnx.state(lm, nnx.Param)), nbytes(cache)
