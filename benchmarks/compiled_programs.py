"""Our programs, compiled for devices that are not there, and tools to read the compiled text."""

import collections
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from musicgen_jax.config import EncodecConfig, LMConfig
from musicgen_jax.generation.decode import example_keys
from musicgen_jax.generation.guidance import guided
from musicgen_jax.generation.program import Requests, advance, start
from musicgen_jax.generation.sampling import Mode, Numbers
from musicgen_jax.generation.settings import Sampling
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.runtime.tuning import Tuning

TEXT_TOKENS = 16
LARGE = 1 << 20  # bytes; smaller results do not matter
_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%\S+ = (\w+)\[([\d,]*)\]\S* ([\w-]+)\(")


def decode_loop(
    config: LMConfig, device: jax.Device, *, dtype: str, batch: int, cache: int, tuning: Tuning
) -> jax.stages.Lowered:
    """The loop of `generate_codes` with guidance, for one device.

    Args:
      config: of the language model.
      device: the target; it need not be present.
      dtype: of the weights; the computation is bfloat16 unless they are float32.
      batch: B.
      cache: S, the number of slots.
      tuning: for the device.
    """
    compute = "float32" if dtype == "float32" else "bfloat16"
    lm = module_shapes(LM, config, dtype=compute, param_dtype=dtype, tuning=tuning)
    graphdef, params = nnx.split(lm, nnx.Param)
    vectors = jax.ShapeDtypeStruct((batch, TEXT_TOKENS, config.dim), compute)
    condition = Condition(Embedded(vectors, jax.ShapeDtypeStruct(vectors.shape[:2], bool)))
    rows = [Sampling()] * batch
    ages = np.zeros(batch, np.int32)

    def begin(params, condition):
        lm = nnx.merge(graphdef, params)
        steps = jnp.zeros((batch, config.n_q, cache + 1), jnp.int32)
        keys = example_keys(0, batch)
        requests = Requests(steps, ages, ages + cache, keys, Numbers.of(rows))
        condition = guided(lm, condition, copies=2)
        return start(lm, requests, condition, prefill_length=0, slots=cache, copies=2)

    def decode(params, state, context, count):
        return advance(nnx.merge(graphdef, params), state, context, count, mode=Mode.of(rows))

    state, context = jax.eval_shape(begin, params, condition)
    here = SingleDeviceSharding(device)
    jitted = jax.jit(decode, donate_argnums=1, in_shardings=here, out_shardings=here)
    return jitted.lower(params, state, context, jax.ShapeDtypeStruct((), jnp.int32))


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
