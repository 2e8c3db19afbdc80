"""From a name to a model folder: bundled, on disk, or official and converted on first use."""

import importlib
import importlib.util
import os
from pathlib import Path

from musicgen_jax import files
from musicgen_jax.config import OFFICIAL_CODECS, OFFICIAL_MODELS
from musicgen_jax.errors import UserError
from musicgen_jax.runtime.user_folders import user_cache

BUNDLED = "nano"  # the default model of every command
BUNDLED_MELODY = "nano-melody"  # the default model of `generate --melody`
BUNDLED_MODELS = {BUNDLED: "model", BUNDLED_MELODY: "melody"}  # and their folders
CONVERTER = "musicgen_jax.convert"  # offers `convert(name, folder)`
_PYTORCH = ("state_dict.bin", "model.safetensors", "pytorch_model.bin")


def models_home() -> Path:
    """Where converted official models are kept.

    `$MUSICGEN_JAX_HOME`, else `musicgen-jax` in the user's cache folder (`$XDG_CACHE_HOME`, else
    `~/.cache`).

    Raises:
      UserError: the user has no home folder.
    """
    if home := os.environ.get("MUSICGEN_JAX_HOME"):
        return Path(os.path.expanduser(home))
    if (cache := user_cache()) is None:
        raise UserError("this user has no home folder: set MUSICGEN_JAX_HOME to one for models")
    return cache


def is_converted(name: str) -> bool:
    """Whether a folder of this name is where converted models are kept."""
    try:
        return (models_home() / name).is_dir()
    except UserError:  # no home folder
        return False


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a converted model. An official model is converted on first use.

    Args:
      name_or_path: "nano", "nano-melody", a folder, or an official name with or without
        "facebook/musicgen-".

    Raises:
      UserError: there is no such model; the message lists the names.
    """
    if name_or_path in BUNDLED_MODELS:
        return _bundled(str(name_or_path))
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        _refuse_pytorch(path)
        return path
    official = _official_name(str(name_or_path))
    if official is None:
        known = ", ".join((*BUNDLED_MODELS, *OFFICIAL_MODELS))
        raise UserError(
            f"no model {str(name_or_path)!r}: give a converted model's folder or one of {known}"
        )
    return _converted(official)


def find_codec(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a converted codec, or of a model with one; see `find_model`.

    Args:
      name_or_path: "encodec_24khz", "encodec_32khz" or "encodec_48khz", with or without
        "facebook/", or what `find_model` takes.

    Raises:
      UserError: there is no such codec or model.
    """
    official = f"facebook/{str(name_or_path).removeprefix('facebook/')}"
    if official not in OFFICIAL_CODECS or Path(name_or_path).is_dir():
        return find_model(name_or_path)
    return _converted(official)


def _bundled(name: str) -> Path:
    from importlib.resources import files

    folder = Path(str(files("musicgen_jax.nano"))) / BUNDLED_MODELS[name]
    if not folder.is_dir():
        raise UserError(f"this installation lacks the model {name}: install the wheel again")
    return folder


def _official_name(name: str) -> str | None:
    for candidate in (name, f"facebook/{name}", f"facebook/musicgen-{name}"):
        if candidate in OFFICIAL_MODELS:
            return candidate
    return None


def _refuse_pytorch(folder: Path) -> None:
    # transformers' folders have a config.json too, and a message about it would mislead.
    names = {file.name for file in folder.iterdir()}
    if names & set(_PYTORCH) or any(name.endswith(".index.json") for name in names):
        raise UserError(
            f"{folder} holds PyTorch weights: run `musicgen-jax convert {folder} OUT` first"
        )


def _converted(name: str) -> Path:
    """The folder of an official model, made on first use.

    If two processes need it at once, one downloads and converts, and the other one waits.
    """
    folder = models_home() / name.replace("/", "--")
    if not folder.is_dir():
        with files.locked(folder):
            if not folder.is_dir():
                _convert(name, folder)
    return folder


def _convert(name: str, folder: Path) -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"{name} is not in {folder.parent}: pip install 'musicgen-jax[hub]' to download it, "
            f"or run `musicgen-jax convert SOURCE {folder}` on a local copy"
        )
    # By name: the converter is a later room, and this one knows only that it exists.
    importlib.import_module(CONVERTER).convert(name, folder)
