"""Files of adapters: safetensors with a JSON header, checked as what comes from outside must be."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_jax.config import LMConfig, from_dict, to_dict
from musicgen_jax.errors import UserError
from musicgen_jax.nn.lora import Adapter, LoraConfig, Weights, targets

FORMAT = "musicgen-jax lora 1"
_MAX_BYTES = 4 << 30


def save(path: str | os.PathLike, adapter: Adapter) -> None:
    """Writes an adapter as a safetensors file; what is there stays until the new one is whole.

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
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as aside:
            aside.write(data)
        os.replace(aside.name, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None


def load(path: str | os.PathLike, lm: LMConfig | None = None) -> Adapter:
    """Reads an adapter.

    Args:
      path: of the file.
      lm: the language model that it is for; None for whichever the file says.

    Raises:
      UserError: there is no such file, it is damaged or no adapter, or it is another model's.
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
                raise UserError(f"{file} is no adapter of musicgen-jax (format {FORMAT!r})")
            config = from_dict(LoraConfig, header.get("config", {}), "config")
            architecture = from_dict(LMConfig, header.get("lm", {}), "lm")
            base = str(header.get("base", ""))[:200]
            if lm is not None and architecture != lm:
                raise UserError(
                    f"{file} belongs to {base or 'a model'} of width {architecture.dim} with "
                    f"{architecture.num_layers} layers: {_difference(architecture, lm)}"
                )
            weights = _read_weights(opened, config, architecture)
    except UserError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}") from None
    return Adapter(config, architecture, base, weights)


def _read_weights(file: Any, config: LoraConfig, lm: LMConfig) -> Weights:
    """Raises ValueError if tensors are missing, too many, of another shape or not finite."""
    # The names are the file's, checked one by one: its pattern is never run.
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
        raise ValueError(f"tensors are missing or too many: {', '.join(odd[:3])}")
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
            return f"{field.name} is {x} there and {y} in this model"
    return "they are alike"
