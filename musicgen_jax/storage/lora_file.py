"""Files of adapters: safetensors with a JSON header. A file from outside may hold anything."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_jax import files
from musicgen_jax.config import LMConfig, from_dict, to_dict
from musicgen_jax.errors import UserError, reason
from musicgen_jax.nn.lora import Adapter, LoraConfig, Weights, targets

FORMAT = "musicgen-jax lora 1"
_MAX_BYTES = 4 << 30


def save(path: str | os.PathLike[str], adapter: Adapter) -> None:
    """Writes an adapter as a safetensors file. It appears complete, and replaces an older one.

    Tensors are `NAME.a` and `NAME.b`, float32; the header's "lora" is a JSON object with the
    format, the settings, and the language model that the adapter belongs to.

    Raises:
      UserError: the file cannot be written.
    """
    import safetensors.numpy

    tensors = {
        f"{name}.{side}": np.ascontiguousarray(pair[side], np.float32)
        for name, pair in adapter.weights.items()
        for side in "ab"
    }
    header = {
        "format": FORMAT,
        "config": dataclasses.asdict(adapter.config),
        "lm": to_dict(adapter.lm),
        "base": adapter.base,
    }
    data = safetensors.numpy.save(tensors, {"lora": json.dumps(header)})
    files.write_bytes(path, data)


def load(path: str | os.PathLike[str], lm: LMConfig | None = None) -> Adapter:
    """Reads an adapter.

    Args:
      path: of the file.
      lm: the language model that it must belong to; None for any.

    Raises:
      UserError: there is no such file, it is damaged or not an adapter, or belongs to another
        model.
    """
    import safetensors

    file = Path(path)
    if not file.is_file():
        raise UserError(f"no adapter at {file}")
    if file.stat().st_size > _MAX_BYTES:
        raise UserError(f"{file} is too large for an adapter: over {_MAX_BYTES >> 30} GiB")
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            header = json.loads((opened.metadata() or {}).get("lora", "null"))
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise UserError(f"{file} is not an adapter of musicgen-jax (format {FORMAT!r})")
            config = from_dict(LoraConfig, header.get("config", {}), "config")
            architecture = from_dict(LMConfig, header.get("lm", {}), "lm")
            base = str(header.get("base", ""))[:200]
            if lm is not None and architecture != lm:
                raise UserError(
                    f"{file} was trained for {base or 'a model'} with {architecture.num_layers} "
                    f"layers of width {architecture.dim}: {_difference(architecture, lm)}"
                )
            weights = _read_weights(opened, config, architecture)
    except UserError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {reason(error)}") from None
    return Adapter(config, architecture, base, weights)


def _read_weights(file: Any, config: LoraConfig, lm: LMConfig) -> Weights:
    """Raises ValueError if tensors are missing, extra, of the wrong shape or not finite."""
    # The file's names are checked one by one. Its pattern is never run: it may be made to hang.
    keys = list(file.keys())
    if lm.num_layers > len(keys):
        raise ValueError(f"{len(keys)} tensors for {lm.num_layers} layers")
    known, wanted = targets(lm), {}
    for name in dict.fromkeys(key.rpartition(".")[0] for key in keys):
        if name not in known:
            raise ValueError(f"the model has no matrix {name[:100]!r}")
        rows, columns = known[name].shape
        wanted |= {f"{name}.a": (config.rank, columns), f"{name}.b": (rows, config.rank)}
    if odd := sorted(set(wanted) ^ set(keys)):
        raise ValueError(f"missing or unexpected tensors: {', '.join(odd[:3])}")
    weights: Weights = {}
    for key, shape in wanted.items():
        part = file.get_slice(key)
        if tuple(part.get_shape()) != shape or part.get_dtype() != "F32":
            raise ValueError(f"{key} is {part.get_dtype()} {part.get_shape()}, not F32 {shape}")
        tensor = file.get_tensor(key)
        if not np.isfinite(tensor).all():
            raise ValueError(f"{key} has numbers that are not finite")
        name, _, side = key.rpartition(".")
        weights.setdefault(name, {})[side] = tensor
    return weights


def _difference(theirs: LMConfig, ours: LMConfig) -> str:
    for field in dataclasses.fields(LMConfig):
        x, y = getattr(theirs, field.name), getattr(ours, field.name)
        if x != y:
            return f"{field.name} is {x} there, but {y} in this model"
    return "they are alike"
