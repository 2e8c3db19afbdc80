"""One table of all numbers that are chosen for a kind of device.

No other code in the package asks for the device before a program is traced. (Inside a program
`lax.platform_dependent` chooses, so that an exported program suits every platform.)
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from musicgen_jax.config import CACHE_DTYPES, DTYPES
from musicgen_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How one kind of device computes the music. The defaults are for a GPU.

    Apart from rounding, no field changes the tokens that a model generates.

    Attributes:
      compute_dtype: default dtype of the language model's computation.
      cache_dtype: dtype of the keys and values that generation caches; None for the dtype of the
        computation.
      heads_per_block: number of heads side by side in one block of the cache; None for all heads of
        a device.
      skip_null_rows: weight dtypes for which cross-attention skips the unconditional rows of
        guidance, which have no text to attend to.
      fold_short_text: weight dtypes for which the cross-attention weights are folded into the keys
        and values of a short text, see `nn.folded_cross`.
      cache_lengths: cache lengths to compile for, in steps; longer lengths are multiples of 512.
      first_cache_lengths: shorter lengths for the start of a growing cache.
      slots: default number of slots of `batch` and of a server, see `serving.engine`.
      slot_lengths: cache lengths of slots, below the length of the model's window, in steps.
      grow_cache_above: a cache grows during generation if it takes more than this share of the
        model's bytes, and more than this number of bytes.
      shortest_text: minimum length of a padded text in tokens; texts are padded to a power of two.
      callback_steps: steps between two progress reports.
      codec_tile: numbers in the widest tensor of a tile of audio that the codec processes at a
        time; None for all audio at once.
      encode_batch: clips that `train encode` passes through the codec at a time.
      winograd: whether the 3 x 3 convolutions of VGGish use `metrics.winograd`. A GPU's library
        chooses such algorithms itself.
      heads_in_turn: whether PaSST attends head by head, so that there are only one head's scores
        at a time.
    """

    compute_dtype: str = "bfloat16"
    cache_dtype: str | None = None
    heads_per_block: int | None = 1
    skip_null_rows: tuple[str, ...] = DTYPES
    fold_short_text: tuple[str, ...] = DTYPES
    # 1504 steps are 30 seconds. 528 instead of 512: XLA's CPU compiler spreads attention over
    # threads only if a head's keys have more than 32,768 numbers (benchmarks/attention.py).
    cache_lengths: tuple[int, ...] = (256, 528, 1024, 1504)
    first_cache_lengths: tuple[int, ...] = ()
    slots: int = 8
    slot_lengths: tuple[int, ...] = (528,)
    # Each length is one more program to compile, and an accelerator takes longer to compile for.
    grow_cache_above: tuple[float, int] = (1.0, 1 << 30)
    shortest_text: int = 16
    callback_steps: int = 10
    codec_tile: int | None = None
    encode_batch: int = 8
    winograd: bool = False
    heads_in_turn: bool = False

    def __post_init__(self) -> None:
        if not self.cache_lengths or list(self.cache_lengths) != sorted(set(self.cache_lengths)):
            raise ValueError(f"cache_lengths must increase, got {self.cache_lengths}")

    def spread(self, num_heads: int, devices: int) -> "Tuning":
        """For a model with heads on several devices: each keeps its heads in its own block."""
        if self.heads_per_block is not None or num_heads % devices:
            return self
        return dataclasses.replace(self, heads_per_block=num_heads // devices)

    def text_length(self, tokens: int) -> int:
        """The padded length of a text; texts of similar length share a compilation."""
        return max(self.shortest_text, 1 << (tokens - 1).bit_length())


GPU = Tuning()

CPU = Tuning(
    # On a CPU, XLA computes bfloat16 at up to half the speed (benchmarks/products.py). Writing one
    # step into a bfloat16 cache would widen and narrow the whole cache.
    compute_dtype="float32",
    cache_dtype="float32",
    # To fold a bfloat16 weight, a CPU would widen all of it. A CPU is also slow at a product of
    # one bfloat16 row (benchmarks/products.py).
    skip_null_rows=("float32", "int8"),
    fold_short_text=("float32", "int8"),
    # Reading unused slots of a cache costs more than compiling for another length
    # (benchmarks/lm_steps.py --batch 16).
    first_cache_lengths=(64, 128),
    slots=4,
    grow_cache_above=(0.1, 1 << 28),
    # 8 MB of float32, which stays in the processor's cache (benchmarks/codec.py).
    codec_tile=1 << 21,
    # A batch is not faster than its clips one by one (benchmarks/codec.py).
    encode_batch=1,
    # XLA's convolutions on a CPU are direct (benchmarks/evaluate.py --networks vggish).
    winograd=True,
    # The scores of one head nearly stay in the processor's cache, and the operating system need not
    # hand out 70 MB for those of all (benchmarks/evaluate.py --networks passt).
    heads_in_turn=True,
)

TPU = Tuning(
    # A vector has 128 lanes; a head of 64 would fill half of them. With one block per head the
    # compiler estimates more than twice the cycles for a step of the small model, and allocates a
    # second cache to change the layout (benchmarks/tpu_compile.py).
    heads_per_block=None,
    # Both options result in a product of one row, for which the compiler estimates a sixth more
    # cycles (benchmarks/tpu_compile.py).
    skip_null_rows=(),
    fold_short_text=(),
)

_BY_PLATFORM = {"cpu": CPU, "tpu": TPU}


def tuning(platform: str | None = None) -> Tuning:
    """The tuning for a platform.

    Args:
      platform: "cpu", "tpu", "gpu" or "cuda" (default: the platform that JAX runs on). Other names
        get the tuning for a GPU.
    """
    return _BY_PLATFORM.get(platform or jax.default_backend(), GPU)


def lm_dtypes(dtype: DTypeLike | None) -> tuple[np.dtype, np.dtype]:
    """The dtypes of the language model's computation and of its matrices.

    Args:
      dtype: dtype of the matrices. By default, and with int8 matrices, the dtype of the computation
        is the `Tuning.compute_dtype` of this device.

    Raises:
      UserError: the dtype is not supported.
    """
    usual = jnp.dtype(tuning().compute_dtype)
    message = f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {dtype!r}"
    try:
        known = usual if dtype is None else jnp.dtype(dtype)
    except TypeError:
        raise UserError(message) from None
    if known.name not in DTYPES:
        raise UserError(message)
    return (usual if known == jnp.int8 else known), known


def cache_dtype(dtype: DTypeLike | None) -> np.dtype | None:
    """The dtype of the language model's keys and values; None for this device's default.

    Raises:
      UserError: the dtype is not supported.
    """
    try:
        known = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        known = np.dtype(object)
    if known is not None and known.name not in CACHE_DTYPES:
        names = f"{', '.join(CACHE_DTYPES[:-1])} or {CACHE_DTYPES[-1]}"
        raise UserError(f"cache_dtype must be {names}, got {dtype!r}")
    return known
