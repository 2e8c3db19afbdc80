"""Writes a model folder in the official PyTorch formats, without torch."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from musicgen_jax import __version__, files
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.convert import encodec, lm, mert, official, t5
from musicgen_jax.convert.inverse import invert_table
from musicgen_jax.convert.pipeline import abstract_params
from musicgen_jax.convert.rules import Table
from musicgen_jax.convert.source import CODEC_FILE, HUB_MERT, LM_FILE, TOKENIZER
from musicgen_jax.convert.torch_writer import write_torch
from musicgen_jax.errors import UserError
from musicgen_jax.storage import checkpoint, hub
from musicgen_jax.storage.checkpoint import ComponentConfig, ModelInfo

FORMATS = ("audiocraft", "transformers")
_WEIGHTS = "model.safetensors"
_MERT_FOLDER = HUB_MERT.split("/")[-1]
# Key prefixes in transformers' file of a whole model; the language model's keys include theirs.
_PREFIXES = {"t5": "text_encoder.", "encodec": "audio_encoder.", "lm": ""}
_CONFIGS = {
    "t5": official.t5_config,
    "mert": official.mert_config,
    "encodec": official.codec_config,
}

Tensors = dict[str, np.ndarray]


def export_torch(
    model: str | os.PathLike,
    out: str | os.PathLike,
    *,
    format: str = "audiocraft",
    overwrite: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Writes a model in an official format; converting it again gives exactly the same model.

    A converted model gives the same keys, shapes and types as its original file. The bytes are also
    the same, except where conversion drops information. There the result is equivalent: the
    direction of a convolution's weight norm is the weight itself, one of the LSTM's two biases is
    zero, and the codebooks' running statistics are reset.

    Args:
      model: "nano", the folder of a model or of a single codec, or an official name.
      out: the folder to create.
      format: "audiocraft" writes `state_dict.bin` and `compression_state_dict.bin`. It also writes
        T5 and a style model's MERT in folders next to them, where `convert` finds them; audiocraft
        itself takes these two from the Hub. "transformers" writes the files that `from_pretrained`
        reads, for text and melody models.
      overwrite: whether to replace the result of an earlier call at `out`.
      log: called with one line about each step.

    Returns:
      `out`.

    Raises:
      UserError: the model does not exist, the format cannot represent it, or `out` is not free.
    """
    if format not in FORMATS:
        raise UserError(f"format must be {' or '.join(FORMATS)}, got {format!r}")
    source = hub.find_model(model)
    info = checkpoint.load_info(source)
    name = str(model)
    with files.new_folder(out, overwrite=overwrite, ours=_is_export) as folder:
        if info.config is None:
            _write_codec_alone(folder, info, source, name, format)
        elif format == "audiocraft":
            _write_audiocraft(folder, info.config, source, name, log)
        else:
            _write_transformers(folder, info.config, source, name, log)
        files.copy_file(source / "LICENSE", folder / "LICENSE")
    return Path(out)


# --- audiocraft --------------------------------------------------------------------------------


def _write_audiocraft(
    folder: Path, config: MusicGenConfig, source: Path, name: str, log: Callable[[str], None]
) -> None:
    lm_settings = official.lm_settings(config)  # refuses a model before reading any weights
    codec_settings = official.codec_settings(config.encodec)
    log(f"t5: folder {official.T5_NAME}; audiocraft itself takes {official.T5_NAME} from the Hub")
    if config.t5.d_model != 768:
        log(
            f"t5: of width {config.t5.d_model}, unlike {official.T5_NAME}: audiocraft cannot run it"
        )
    _write_alone(folder / official.T5_NAME, "t5", config.t5, source, name)
    _write_tokenizer(folder / official.T5_NAME, source)
    if config.mert is not None:
        log(f"mert: folder {_MERT_FOLDER}; audiocraft itself takes {HUB_MERT} from the Hub")
        _write_alone(folder / _MERT_FOLDER, "mert", config.mert, source, name)
    log(f"lm: {LM_FILE}")
    table = lm.audiocraft_table(config.lm)
    _write_package(folder / LM_FILE, _tensors("lm", config.lm, table, source, name), lm_settings)
    log(f"encodec: {CODEC_FILE}")
    _write_codec_package(folder, config.encodec, source, name, codec_settings)


def _write_codec_package(
    folder: Path, config: Any, source: Path, name: str, settings: Mapping[str, Any]
) -> None:
    table = encodec.table(config, encodec.SPELLINGS["audiocraft"])
    tensors = _tensors("encodec", config, table, source, name)
    _write_package(folder / CODEC_FILE, tensors, settings)


def _write_package(path: Path, tensors: Tensors, settings: Mapping[str, Any]) -> None:
    """Writes the same package as audiocraft's `export_lm` and `export_encodec`."""
    package = {
        "best_state": tensors,
        "xp.cfg": official.to_yaml(settings),
        "version": f"musicgen-jax {__version__}",
        "exported": True,
    }
    write_torch(path, package)


# --- transformers ------------------------------------------------------------------------------


def _write_transformers(
    folder: Path, config: MusicGenConfig, source: Path, name: str, log: Callable[[str], None]
) -> None:
    official.model_config(config, "float32")  # refuses a model before reading any weights
    tensors: Tensors = {}
    for component, prefix in _PREFIXES.items():
        log(f"{component}: {_WEIGHTS}")
        part = getattr(config, component)
        own = _tensors(component, part, _transformers_table(component, part), source, name)
        tensors |= {prefix + key: tensor for key, tensor in own.items()}
    if config.lm.dim == config.t5.d_model:
        _drop_projection(tensors, name)
    dtypes = {tensor.dtype.name for tensor in tensors.values() if tensor.dtype.kind != "i"}
    # Transformers loads all weights in one type, so choose a type that can represent all of them.
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    _write_json(folder / "config.json", official.model_config(config, dtype))
    _write_json(folder / "generation_config.json", official.generation_config(config))
    _write_json(folder / "preprocessor_config.json", official.preprocessor_config(config))
    _write_tokenizer(folder, source)
    _write_weights(folder, tensors)


def _transformers_table(component: str, config: Any) -> Table:
    if component == "encodec":
        return encodec.table(config, encodec.SPELLINGS["transformers"])
    return {"lm": lm.TRANSFORMERS, "t5": t5.TABLE, "mert": mert.TABLE}[component]


def _drop_projection(tensors: Tensors, name: str) -> None:
    """Drops the text projection: at equal widths transformers uses T5's vectors directly."""
    weight, bias = (tensors.pop(f"enc_to_dec_proj.{kind}") for kind in ("weight", "bias"))
    if not np.array_equal(weight, np.eye(len(weight))) or bias.any():
        raise UserError(
            f"transformers cannot express {name}: it has no projection of the text to the same "
            "width; write it as --format audiocraft"
        )


def _write_alone(
    folder: Path, component: str, config: ComponentConfig, source: Path, name: str
) -> None:
    """Writes a component as a separate folder."""
    folder.mkdir(exist_ok=True)
    table = _transformers_table(component, config)
    _write_weights(folder, _tensors(component, config, table, source, name))
    _write_json(folder / "config.json", _CONFIGS[component](config))


def _write_weights(folder: Path, tensors: Tensors) -> None:
    whole = {key: np.asarray(tensor, order="C") for key, tensor in tensors.items()}
    save_file(whole, folder / _WEIGHTS, {"format": "pt"})  # transformers requires the metadata


def _write_tokenizer(folder: Path, source: Path) -> None:
    files.copy_file(source / checkpoint.TOKENIZER, folder / TOKENIZER)
    _write_json(folder / "tokenizer_config.json", official.TOKENIZER_CONFIG)


# --- Both --------------------------------------------------------------------------------------


def _write_codec_alone(folder: Path, info: ModelInfo, source: Path, name: str, format: str) -> None:
    if set(info.parts) != {"encodec"}:
        raise UserError(
            f"{name} is neither a MusicGen model nor a codec: it holds {set(info.parts)}"
        )
    config: Any = info.parts["encodec"]
    if format == "audiocraft":
        settings = official.codec_settings(config)
        _write_codec_package(folder, config, source, name, settings)
    else:
        _write_alone(folder, "encodec", config, source, name)


def _tensors(
    component: str, config: ComponentConfig, table: Table, source: Path, name: str
) -> Tensors:
    """The official tensors of a component, in the stored types of its parameters."""
    abstract = abstract_params(component, config)
    params = checkpoint.load_params(source, component, abstract, keep_dtypes=True)
    return invert_table(table, params, name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _is_export(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (LM_FILE, CODEC_FILE, _WEIGHTS))
