"""What `musicgen-jax doctor` looks at. Each check gives findings, and none of them fails.

jax is imported inside of the checks that need it: where it cannot be imported, the others still
say why.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import platform
import socket
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musicgen_jax import __version__
from musicgen_jax.commands import requirements
from musicgen_jax.errors import UserError, reason
from musicgen_jax.runtime import memory, user_folders
from musicgen_jax.storage import hub

OK, NOTE, WRONG = "ok", "note", "wrong"
_LIBRARIES = ("jax", "flax.nnx", "orbax.checkpoint", "sentencepiece", "soundfile", "soxr")
_SIZES = ("small", "medium", "large")
_SPARE = 1.1  # on top of weights and cache, a step and the codec need working memory
_MOST_FILES = 100_000
_TEXT = "a calm waltz for solo piano"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
      check: what was looked at.
      state: "ok"; "note" if it may be intended; "wrong" if it must be fixed.
      text: what was found and, if it is wrong, the way out.
      data: the same for a program, in plain JSON types.
    """

    check: str
    state: str
    text: str
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


def examine(*, music: bool = True) -> Iterator[Finding]:
    """All findings, one after the other.

    Args:
      music: whether to make a second of music, which takes longest.
    """
    yield _program()
    yield _versions()
    yield (libraries := _libraries())
    yield from _folders()
    yield _network()
    if libraries.state == WRONG:
        yield Finding("music", NOTE, "not tried: fix the libraries first")
        return
    yield (devices := _devices())
    if devices.state == WRONG:
        return
    yield _sizes(devices.data["memory"])
    if music:
        yield _music()


# --- Software -------------------------------------------------------------------------------------


def _program() -> Finding:
    data = {
        "musicgen-jax": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
    }
    return Finding(
        "program", OK, "musicgen-jax {musicgen-jax}, Python {python}, {system}".format(**data), data
    )


def _versions() -> Finding:
    found = requirements.versions()
    main = ("jax", "jaxlib", "flax", "orbax-checkpoint")
    text = ", ".join(f"{name} {found[name]}" for name in main)
    if conflicts := requirements.conflicts():
        way = "pip install --upgrade musicgen-jax jax jaxlib"
        return Finding("versions", WRONG, f"{'; '.join(conflicts)}: {way}", found)
    return Finding("versions", OK, text, found)


def _libraries() -> Finding:
    faults = {}
    for name in _LIBRARIES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a library of another version fails in any way
            faults[name] = f"{type(error).__name__}: {reason(error)}"
    if faults:
        text = "; ".join(f"{name} cannot be imported ({fault})" for name, fault in faults.items())
        return Finding("libraries", WRONG, f"{text}: install musicgen-jax again", faults)
    return Finding("libraries", OK, "jax, flax, orbax and the libraries for sound can be imported")


# --- Folders --------------------------------------------------------------------------------------


def _folders() -> Iterator[Finding]:
    programs = user_folders.compiled_programs()
    off = os.environ.get(user_folders.VARIABLE)
    if programs is not None:
        yield _compiled(programs)
    elif off:
        yield Finding("compiled programs", NOTE, f"{user_folders.VARIABLE}={off}: none are kept")
    else:
        yield _no_home("compiled programs", user_folders.VARIABLE)
    try:
        yield _models(hub.models_home())
    except UserError:
        yield _no_home("models", "MUSICGEN_JAX_HOME")
    yield _temporary()


def _no_home(check: str, variable: str) -> Finding:
    return Finding(check, WRONG, f"this user has no home folder: set {variable} to a folder")


def _compiled(folder: Path) -> Finding:
    from musicgen_jax.runtime import program_store

    finding = _folder("compiled programs", folder, user_folders.VARIABLE, private=True)
    if finding.state == WRONG:
        return finding
    damaged = len(program_store.damaged(folder))
    data = finding.data | {"damaged": damaged}
    if damaged:
        text = f"{folder}: {damaged} damaged, of another release or not yours, and not used"
        return Finding(finding.check, WRONG, f"{text}: `musicgen-jax cache clean --damaged`", data)
    return dataclasses.replace(finding, data=data)


def _models(folder: Path) -> Finding:
    return _folder("models", folder, "MUSICGEN_JAX_HOME", private=False)


def _temporary() -> Finding:
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        return Finding("temporary files", WRONG, f"{reason(error)}: set TMPDIR to a folder")
    return _folder("temporary files", folder, "TMPDIR", private=False, count=False)


def _folder(check: str, folder: Path, variable: str, *, private: bool, count=True) -> Finding:
    """Whether a folder can be written to, and by whom; its size and the room on its disk."""
    data: dict[str, Any] = {"path": str(folder), "writable": user_folders.usable(folder)}
    elsewhere = f"or set {variable} to another folder"
    if not data["writable"]:
        return Finding(
            check,
            WRONG,
            f"{folder} cannot be written: {_why(folder)}; fix that, {elsewhere}",
            data,
        )
    if private:
        with contextlib.suppress(OSError):
            others = user_folders.others_can_write(folder)
            data["private"] = others is None
            if others:
                text = f"others can write to {others}: `chmod go-w {others}` as its owner"
                return Finding(check, WRONG, f"{text}, {elsewhere}", data)
    text = str(folder)
    if count:
        data["files"], data["bytes"] = size_of(folder)
        text += f": {data['files']} files, {gigabytes(data['bytes'])}"
    with contextlib.suppress(OSError):
        state = os.statvfs(folder) if hasattr(os, "statvfs") else None
        if state is not None:
            data["free"] = state.f_bavail * state.f_frsize
            text += f", {gigabytes(data['free'])} free"
            if data["free"] < 100 << 20:
                return Finding(check, WRONG, f"{text}: the disk is full", data)
    return Finding(check, OK, text, data)


def size_of(folder: Path) -> tuple[int, int]:
    """The files below a folder and their bytes; links are not followed, nor counted."""
    count = size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                state = os.lstat(os.path.join(parent, name))
                count, size = count + 1, size + state.st_size
        if count > _MOST_FILES:
            break
    return count, size


def _why(folder: Path) -> str:
    """Why no file can be made there, in the system's words."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return "it can, now"
    except OSError as error:
        return reason(error)


# --- The network ----------------------------------------------------------------------------------


def _network() -> Finding:
    library = importlib.util.find_spec("huggingface_hub") is not None
    data: dict[str, Any] = {"huggingface_hub": library, "online": None}
    lacking = "" if library else "; downloads need pip install 'musicgen-jax[hub]'"
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        address = urllib.parse.urlsplit(endpoint)
        port = address.port or 443
    except ValueError:
        text = f"HF_ENDPOINT is not an address: {endpoint}"
        return Finding("network", NOTE, text + lacking, data)
    host = address.hostname or "huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        data["online"] = False
        return Finding("network", NOTE, f"off, as HF_HUB_OFFLINE says{lacking}", data)
    if proxy := urllib.request.getproxies().get("https"):
        host = urllib.parse.urlsplit(proxy).hostname or "a proxy"
        return Finding("network", NOTE, f"goes through {host}, which was not tried{lacking}", data)
    try:
        socket.create_connection((host, port), timeout=3).close()
    except (OSError, ValueError) as error:
        data["online"] = False
        text = f"{host} does not answer ({reason(error)}): official models cannot be downloaded"
        return Finding("network", NOTE, text + lacking, data)
    data["online"] = True
    return Finding("network", OK if library else NOTE, f"{host} answers{lacking}", data)


# --- The device -----------------------------------------------------------------------------------


def _devices() -> Finding:
    import jax

    try:
        devices = jax.devices()
    except Exception as error:  # of each plugin's own kind
        chosen = os.environ.get("JAX_PLATFORMS")
        way = f"JAX_PLATFORMS={chosen} asks for it: unset it" if chosen else "see its driver"
        text = f"jax finds no device ({reason(error)}): {way}"
        return Finding("devices", WRONG, text)
    first = devices[0]
    size = device_memory(first)
    data = {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": len(devices),
        "cores": os.cpu_count(),
        "memory": size,
    }
    text = f"{len(devices)} {first.device_kind} ({first.platform})"
    if size is not None:
        text += f", {gigabytes(size)} of memory{' each' if len(devices) > 1 else ''}"
    if first.platform != "cpu":
        return Finding("devices", OK, text, data)
    text += f", {os.cpu_count()} cores"
    if os.path.exists("/proc/driver/nvidia/version"):
        way = "pip install 'jax[cuda12]' (or cuda13, as the driver is)"
        return Finding("devices", NOTE, f"{text}; there is an NVIDIA driver, unused: {way}", data)
    return Finding("devices", OK, text, data)


def device_memory(device: Any) -> int | None:
    """Bytes that a program may use there: an accelerator's own memory, on a CPU the machine's."""
    if device.platform == "cpu":
        return memory.total()
    with contextlib.suppress(Exception):  # not every plugin counts
        return (device.memory_stats() or {}).get("bytes_limit")
    return None


def _sizes(there: int | None) -> Finding:
    """Which official sizes fit, in which dtype, for one clip as long as the window."""
    from musicgen_jax.commands import sizes
    from musicgen_jax.config import DTYPES, OFFICIAL_MODELS

    table = {
        size: {
            dtype: round(
                _SPARE * sizes.needs(OFFICIAL_MODELS[f"facebook/musicgen-{size}"], dtype).total
            )
            for dtype in DTYPES
        }
        for size in _SIZES
    }
    if there is None:
        return Finding("sizes", NOTE, "the device does not say how much memory it has", table)
    words = []
    for size, needed in table.items():
        fits = [name for name, number in needed.items() if number <= there]
        least = min(needed.values())
        words.append(f"{size} in {', '.join(fits)}" if fits else f"{size} needs {gigabytes(least)}")
    return Finding("sizes", OK, f"fits: {'; '.join(words)}", {"bytes": table, "memory": there})


# --- Music ----------------------------------------------------------------------------------------


def _music() -> Finding:
    """One second of nano: timed, and its tokens compared with what the whole piece predicts."""
    try:
        data = _second_of_music()
    except Exception as error:  # the report continues, and says what failed
        return Finding("music", WRONG, f"nano fails: {type(error).__name__}: {reason(error)}")
    text = (
        f"1 s of nano took {data['warm_seconds']:.2f} s ({data['steps_per_second']:.0f} steps/s), "
        f"the first time {data['first_seconds']:.1f} s"
    )
    if not data["audible"]:
        return Finding("music", WRONG, f"{text}; it is silent or not finite: report this", data)
    if data["agreement"] < 0.95:  # one program rounds as another only almost everywhere
        share = f"{data['agreement']:.0%}"
        return Finding(
            "music", WRONG, f"{text}; only {share} of its tokens are right: report this", data
        )
    return Finding("music", OK, f"{text}; its tokens are right", data)


def _second_of_music() -> dict[str, Any]:
    import numpy as np

    from musicgen_jax.model import MusicGen
    from musicgen_jax.runtime import compile_cache

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        compile_cache.enable()  # what is wrong with its folder is said above
    start = time.perf_counter()
    model = MusicGen.from_pretrained("nano")
    loaded = time.perf_counter()

    def make():
        # Without guidance, so that the tokens are those that the bare logits prefer.
        return model.generate([_TEXT], duration=1.0, use_sampling=False, cfg_coef=1.0)

    make()
    first = time.perf_counter()
    out = make()
    warm = time.perf_counter() - first
    logits = np.asarray(model.lm_logits(out.codes, [_TEXT]))
    known = np.isfinite(logits).all(axis=-1)
    chosen = np.take_along_axis(logits, out.codes[..., None], axis=-1)[..., 0]
    # Two programs round differently: the runner-up may win a tie.
    spread = logits.max(axis=-1) - logits.mean(axis=-1)
    right = (chosen >= logits.max(axis=-1) - 0.05 * spread)[known]
    return {
        "load_seconds": round(loaded - start, 3),
        "first_seconds": round(first - loaded, 3),
        "warm_seconds": round(warm, 3),
        "steps_per_second": round(out.codes.shape[2] / warm, 1),
        "agreement": round(float(right.mean()), 4),
        "audible": bool(np.isfinite(out.audio).all() and np.abs(out.audio).max() > 1e-3),
        "dtype": model.lm.param_dtype.name,
    }


def gigabytes(size: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes" if size < 1000 else f"{size / 1000:.1f} kB"
