"""From a name to a model folder: bundled, on disk, or official and then converted once."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from musicgen_jax.config import OFFICIAL_CODECS, OFFICIAL_MODELS
from musicgen_jax.errors import UserError
from musicgen_jax.runtime.user_folders import user_cache

BUNDLED = "nano"
_PYTORCH = ("state_dict.bin", "model.safetensors", "pytorch_model.bin")


def models_home() -> Path:
    """Where converted official models are kept.

    `$MUSICGEN_JAX_HOME`, else `musicgen-jax` in the user's cache folder (`$XDG_CACHE_HOME`, else
    `~/.cache`).
    """
    if home := os.environ.get("MUSICGEN_JAX_HOME"):
        return Path(home).expanduser()
    return user_cache()


def find_model(name_or_path: str | os.PathLike) -> Path:
    """The folder of a converted model, made first if it is official and not here yet.

    Args:
      name_or_path: "nano", a folder, or an official name with or without "facebook/musicgen-".

    Raises:
      UserError: there is no such model; the message says what would be one.
    """
    if name_or_path == BUNDLED:
        return _bundled()
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        _refuse_pytorch(path)
        return path
    official = _official_name(str(name_or_path))
    if official is None:
        known = ", ".join((BUNDLED, *OFFICIAL_MODELS))
        raise UserError(
            f"no model {str(name_or_path)!r}: give a converted model's folder or one of {known}"
        )
    folder = models_home() / official.replace("/", "--")
    if not folder.is_dir():
        _convert(official, folder)
    return folder


def find_codec(name_or_path: str | os.PathLike) -> Path:
    """The folder of a converted codec or of a model with one, made first as in `find_model`.

    Args:
      name_or_path: "encodec_24khz", "encodec_32khz" or "encodec_48khz", with or without
        "facebook/", or what `find_model` takes.

    Raises:
      UserError: there is no such codec or model.
    """
    official = f"facebook/{str(name_or_path).removeprefix('facebook/')}"
    if official not in OFFICIAL_CODECS or Path(name_or_path).is_dir():
        return find_model(name_or_path)
    folder = models_home() / official.replace("/", "--")
    if not folder.is_dir():
        _convert(official, folder)
    return folder


def _bundled() -> Path:
    from importlib.resources import files

    folder = Path(str(files("musicgen_jax.nano"))) / "model"
    if not folder.is_dir():
        raise UserError("this installation came without the model nano: install the wheel again")
    return folder


def _official_name(name: str) -> str | None:
    for candidate in (name, f"facebook/{name}", f"facebook/musicgen-{name}"):
        if candidate in OFFICIAL_MODELS:
            return candidate
    return None


def _refuse_pytorch(folder: Path) -> None:
    # A transformers folder has a config.json too: without this the message would be about that.
    names = {file.name for file in folder.iterdir()}
    if names & set(_PYTORCH) or any(name.endswith(".index.json") for name in names):
        raise UserError(
            f"{folder} holds PyTorch weights: first run `musicgen-jax convert {folder} OUT`"
        )


def _convert(name: str, folder: Path) -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"{name} is not in {folder.parent}: pip install 'musicgen-jax[hub]' to download it, "
            f"or run `musicgen-jax convert SOURCE {folder}` on a local copy"
        )
    _run_converter(name, folder)


def _run_converter(name: str, folder: Path) -> None:
    """`python -m musicgen_jax.convert` in a process of its own, whose memory is free afterwards.

    Its output goes to stderr as it comes. If it fails, its last line becomes the error.
    """
    command = [sys.executable, "-m", "musicgen_jax.convert", name, str(folder)]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 1 << 16):
            last += chunk.decode(errors="replace")
            # A progress bar ends its lines with a carriage return.
            end = 1 + max(last.rfind("\n", 0, -1), last.rfind("\r", 0, -1))
            if sys.stderr is not None:
                print(last[:end], end="", file=sys.stderr, flush=True)
            last = last[end:]
    if process.returncode:
        reason = last.strip().removeprefix("error: ")
        raise UserError(f"cannot convert {name}: {reason or 'the converter was stopped'}")
