"""`musicgen-jax models`: the models that can be used here, and what the others need."""

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musicgen_jax.config import OFFICIAL_CODECS, OFFICIAL_MODELS
from musicgen_jax.errors import UserError, one_line
from musicgen_jax.storage import hub

BUNDLED, READY, MISSING, BROKEN = "bundled", "ready", "missing", "broken"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Prints a line for each model and codec."""
    home = _home()
    found = _found(home)
    library = importlib.util.find_spec("huggingface_hub") is not None
    if args.json:
        document = {"home": home and str(home), "huggingface_hub": library, "models": found}
        print(json.dumps(document, indent=2))
        return
    width = max(len(model["name"]) for model in found)
    for model in found:
        print(f"{model['state']:<7}  {one_line(model['name']):<{width}}  {one_line(model['what'])}")
    if any(model["state"] == MISSING for model in found):
        way = "the first use downloads and converts one"
        if not library:
            way = "pip install 'musicgen-jax[hub]' lets the first use download and convert one"
        print(f"missing: {way}; or `musicgen-jax convert SOURCE {home or 'OUT'}/NAME`")


def playable() -> list[dict[str, Any]]:
    """The models that make music, by name, state and what they are: those that are here first."""
    found = [model for model in _found(_home()) if model["plays"]]
    return sorted(found, key=lambda model: model["state"] == MISSING)


def hearing_of(name: str) -> Callable[[str], str] | None:
    """Says in one line what a bundled model understands of a prompt; None for all others."""
    if name not in hub.BUNDLED_MODELS:
        return None
    from musicgen_jax.nano.hearing import hear

    return lambda prompt: str(hear(prompt))


def _found(home: Path | None) -> list[dict[str, Any]]:
    return [*_bundled(), *_official(home), *_others(home)]


def _home() -> Path | None:
    try:
        return hub.models_home()
    except UserError:
        return None


def _bundled() -> list[dict[str, Any]]:
    return [_model(name, hub.find_model(name)) | {"state": BUNDLED} for name in hub.BUNDLED_MODELS]


def _official(home: Path | None) -> list[dict[str, Any]]:
    found = []
    for name in (*OFFICIAL_MODELS, *OFFICIAL_CODECS):
        folder = home and home / name.replace("/", "--")
        if folder is not None and folder.is_dir():
            found.append(_model(name, folder))
            continue
        config = OFFICIAL_MODELS.get(name)
        what = _short(config.lm, config.audio_channels) if config else "a codec"
        found.append(
            {
                "name": name,
                "state": MISSING,
                "plays": config is not None,
                "what": what,
                "folder": None,
                "bytes": None,
            }
        )
    return found


def _others(home: Path | None) -> list[dict[str, Any]]:
    """Models in the user's folder under names of their own, such as a separator."""
    if home is None or not home.is_dir():
        return []
    known = {name.replace("/", "--") for name in (*OFFICIAL_MODELS, *OFFICIAL_CODECS)}
    folders = sorted(entry for entry in home.iterdir() if (entry / "config.json").is_file())
    return [_model(entry.name, entry) for entry in folders if entry.name not in known]


def _model(name: str, folder: Path) -> dict[str, Any]:
    from musicgen_jax.storage import checkpoint

    model: dict[str, Any] = {"name": name, "state": READY, "plays": name in OFFICIAL_MODELS}
    model |= {"folder": str(folder), "bytes": None}
    try:
        info = checkpoint.load_info(folder)
    except UserError as error:
        return model | {"state": BROKEN, "what": str(error)}
    size = sum(entry["bytes"] for entry in info.components.values())
    what = ", ".join(info.parts)
    if info.config is not None:
        what = _short(info.config.lm, info.config.audio_channels)
    model["plays"] = info.config is not None
    return model | {"bytes": size, "what": f"{what}, {size / 1e6:.0f} MB"}


def _short(lm: Any, channels: int) -> str:
    takes = "text" + (", melody" if lm.chroma_bins else "") + (", style" if lm.style else "")
    return f"{takes}; {lm.num_layers} layers of {lm.dim}{', stereo' if channels == 2 else ''}"
