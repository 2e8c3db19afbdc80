"""Our programs, compiled for devices that are not there, and tools to read the compiled text."""

import collections
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding

from musicgen_jax.config import EncodecConfig, LMConfig
from musicgen_jax.generation import decode
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.shapes import module_shapes

TEXT_TOKENS = 16
LARGE = 1 << 20  # bytes; smaller results do not matter
_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%\S+ = (\w+)\[([\d,]*)\]\S* ([\w-]+)\(")


def decode_loop(
    config: LMConfig, device: jax.Device, *, dtype: str, batch: int, cache: int, groups: int
) -> jax.stages.Lowered:
    """The loop of `generate_codes` with guidance, for one device.

    Args:
      config: of the language model.
      device: the target; it need not be present.
      dtype: of the weights; the computation is bfloat16 unless they are float32.
      batch: B.
      cache: S, the number of slots.
      groups: how many groups of heads the cache has, see `transformer.cache_groups`.
    """
    compute = "float32" if dtype == "float32" else "bfloat16"
    types = {"dtype": compute, "param_dtype": dtype, "cache_dtype": compute}
    lean = device.platform != "tpu"  # as `transformer.lean_cross` chooses
    lm = module_shapes(LM, config, **types, cache_groups=groups, lean_cross=lean)
    graphdef, params = nnx.split(lm, nnx.Param)
    vectors = jax.ShapeDtypeStruct((batch, TEXT_TOKENS, config.dim), compute)
    condition = Condition(Embedded(vectors, jax.ShapeDtypeStruct(vectors.shape[:2], bool)))
    guided = partial(decode._guided.__wrapped__, copies=2, mesh=None)
    condition = jax.eval_shape(guided, lm, condition)
    steps = jax.ShapeDtypeStruct((batch, config.n_q, cache + 1), jnp.int32)

    def start(params, steps, keys, condition):
        return decode._start.__wrapped__(
            graphdef, params, steps, jnp.int32(0), keys, condition,
            prefill_length=0, cache_length=cache, copies=2,
        )  # fmt: skip

    def run(params, state, cross_kv, condition, count, *numbers):
        return decode._decode.__wrapped__(
            graphdef, params, state, cross_kv, condition, count, *numbers, None,
            form=decode.Form(),
        )  # fmt: skip

    keys = jax.eval_shape(lambda: decode.example_keys(0, batch))
    state, cross_kv = jax.eval_shape(start, params, steps, keys, condition)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    here = SingleDeviceSharding(device)
    jitted = jax.jit(run, donate_argnums=1, in_shardings=here, out_shardings=here)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return jitted.lower(params, state, cross_kv, condition, count, number, number, number)


def codec_decode(
    config: EncodecConfig, device: jax.Device, *, batch: int, frames: int
) -> jax.stages.Lowered:
    """EnCodec from codes to audio, for a device that need not be present."""
    graphdef, params = nnx.split(module_shapes(Encodec, config), nnx.Param)
    codes = jax.ShapeDtypeStruct((batch, config.n_q, frames), jnp.int32)
    here = SingleDeviceSharding(device)

    def decode(params, codes):
        return nnx.merge(graphdef, params).decode(codes)

    return jax.jit(decode, in_shardings=here, out_shardings=here).lower(params, codes)


def computations(hlo: str) -> tuple[str, list[str]]:
    """The entry of a compiled program, and the bodies of its loops."""
    bodies = re.split(r"\n(?=%|ENTRY)", hlo)
    entry = next(body for body in bodies if body.startswith("ENTRY"))
    loops = set(re.findall(r"body=(%[\w.-]+)", hlo))
    return entry, [body for body in bodies if body.split(" ", 1)[0] in loops]


def moved(body: str) -> dict[str, int]:
    """Counts the large results of a computation that are only copies or conversions, by name."""
    found = collections.Counter()
    for line in body.splitlines():
        if match := _INSTRUCTION.match(line):
            dtype, sizes, kind = match.groups()
            size = math.prod(map(int, sizes.split(","))) if sizes else 1
            moves = kind in ("copy", "convert", "transpose", "slice")
            if moves and size * _BYTES.get(dtype, 4) >= LARGE:
                found[f"{kind} {dtype}[{sizes}]"] += 1
    return dict(found)
