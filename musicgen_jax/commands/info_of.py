"""What `musicgen-jax info` says about a model, or about a file, whose kind it finds by itself."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from musicgen_jax import audio
from musicgen_jax.audio import clip_settings
from musicgen_jax.commands import sizes
from musicgen_jax.config import (
    OFFICIAL_CODECS,
    OFFICIAL_MODELS,
    EncodecConfig,
    LMConfig,
    MertConfig,
    MusicGenConfig,
    T5Config,
    to_dict,
)
from musicgen_jax.errors import UserError, user_error
from musicgen_jax.metrics import statistics_file
from musicgen_jax.storage import checkpoint, codec_file, hub, lora_file

OFFICIAL_LICENSE = "CC-BY-NC 4.0, as Meta gives it: no commercial use"
_LONGEST = 300  # characters of a licence


def describe(what: str) -> dict[str, Any]:
    """Everything that is known about a model or a file, in plain JSON types.

    Args:
      what: a model's folder, one of `hub`'s names, or a file.

    Raises:
      UserError: the model or file does not exist, is damaged, or is of an unknown kind.
    """
    path = Path(os.path.expanduser(what))
    if path.is_file():
        return _file(path)
    if path.is_dir():
        return _model(path)
    official = official_name(what)
    if official is None:
        if what != hub.BUNDLED and (path.suffix or os.sep in what):
            raise UserError(f"no file or folder {what}")
        return _model(hub.find_model(what))
    folder = hub.models_home() / official.replace("/", "--")
    if folder.is_dir():
        return _model(folder)
    config = OFFICIAL_MODELS.get(official)
    parts: dict[str, Any] = {"encodec": OFFICIAL_CODECS[official]} if config is None else {}
    return {
        "kind": "codec" if config is None else "model",
        "name": official,
        "converted": False,
        "license": OFFICIAL_LICENSE,
        **(_architecture(config, parts)),
        "way": f"musicgen-jax convert {official} {folder}",
    }


def official_name(name: str) -> str | None:
    """The full official name of a model or codec; None if there is no such name."""
    for candidate in (name, f"facebook/{name}", f"facebook/musicgen-{name}"):
        if candidate in OFFICIAL_MODELS or candidate in OFFICIAL_CODECS:
            return candidate
    return None


def _model(folder: Path) -> dict[str, Any]:
    found = checkpoint.load_info(folder)
    name = found.config.name if found.config else str(found.source.get("name") or "")
    return {
        "kind": "model" if found.config else ", ".join(found.parts),
        "name": name,
        "converted": True,
        "folder": str(folder),
        "license": _license(folder),
        "source": found.source,
        **_architecture(found.config, found.parts),
        "stored": {
            part: f"{entry['storage']}, {entry['bytes']} bytes"
            for part, entry in found.components.items()
        },
    }


def _architecture(config: MusicGenConfig | None, parts: dict[str, Any]) -> dict[str, Any]:
    """Parameters, window, rates and the networks of a model, or of single parts."""
    if config is not None:
        parts = checkpoint.component_configs(config)
    # Of a model from outside, too: only what has plausible sizes is counted.
    counted = {n: sizes.parameters(p) for n, p in parts.items() if _can_be_counted(p)}
    found: dict[str, Any] = {"parameters": {**counted, "all": sum(counted.values())}}
    if config is not None:
        lm = config.lm
        takes = ["text", *(["melody"] if lm.chroma_bins else []), *(["style"] if lm.style else [])]
        found |= {
            "window_seconds": config.max_duration,
            "sample_rate": config.sample_rate,
            "channels": config.audio_channels,
            "frame_rate": config.frame_rate,
            "codebooks": lm.n_q,
            "takes": takes,
            "dtypes": "float32, bfloat16 or int8, chosen when it is loaded",
        }
    return found | {"architecture": {name: to_dict(part) for name, part in parts.items()}}


def _can_be_counted(part: Any) -> bool:
    if not isinstance(part, T5Config | EncodecConfig | MertConfig | LMConfig):
        return False
    numbers = (getattr(part, field.name) for field in dataclasses.fields(part))
    return all(value < 1 << 17 for value in numbers if type(value) is int)


def _license(folder: Path) -> str:
    place = folder / "LICENSE"
    with user_error("read", place), open(place, encoding="utf-8", errors="replace") as file:
        text = " ".join(file.read(4 * _LONGEST).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


# --- Files ----------------------------------------------------------------------------------------


def _file(path: Path) -> dict[str, Any]:
    with user_error("read", path), open(path, "rb") as file:
        start = file.read(16)
    if start[:2] == b"PK":
        return _codes_or_statistics(path)
    if path.suffix.lower() == ".safetensors":
        return _adapter(path)
    return _clip(path)


def _clip(path: Path) -> dict[str, Any]:
    header, settings = audio.info(path), clip_settings.read(path)
    found = {
        "kind": "audio",
        "seconds": round(header.duration, 3),
        "sample_rate": header.sample_rate,
        "channels": header.channels,
    }
    if settings is None:
        return found | {"made_by": "not musicgen-jax, or its settings were removed"}
    return found | {"made_by": "musicgen-jax", "settings": settings}


def _adapter(path: Path) -> dict[str, Any]:
    adapter = lora_file.load(path)
    return {
        "kind": "adapter",
        "for": adapter.base,
        **to_dict(adapter.config),
        "matrices": len(adapter.weights),
        "parameters": sum(p.size for pair in adapter.weights.values() for p in pair.values()),
        "architecture": {"lm": to_dict(adapter.lm)},
    }


def _codes_or_statistics(path: Path) -> dict[str, Any]:
    try:
        codes = codec_file.read(path)
    except UserError as error:
        try:
            about = statistics_file.describe(path)
        except UserError:
            raise UserError(f"{path} holds neither codes nor statistics: {error}") from None
        return {"kind": "statistics", **about}
    clips, books, frames = codes.codes.shape
    return {
        "kind": "codes",
        "codec": codes.codec,
        "seconds": round(codes.length / codes.sample_rate, 3),
        "clips": clips,
        "codebooks": books,
        "frames": frames,
        "sample_rate": codes.sample_rate,
        "channels": codes.channels,
        "bandwidth_kbps": codes.bandwidth,
        "fingerprint": codes.fingerprint,
    }
