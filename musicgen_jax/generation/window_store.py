"""The finished windows of a long generation, kept so that it can resume after an interruption.

A folder: `settings.json` says what is being generated and by which model; `window-00000.npy` and so
on hold the codes of each finished window, int32 [B, K, t]. Every file appears whole or not at all,
so a run that was interrupted at any moment resumes after its last finished window. Every window has
its own random key, so the result is the same.
"""

import hashlib
import io
import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from musicgen_jax import files
from musicgen_jax.errors import UserError, user_error
from musicgen_jax.generation.windows import Window
from musicgen_jax.nn.condition import Condition

SETTINGS = "settings.json"
_ADDED = "followed"  # a setting that older versions did not keep
_OURS = re.compile(
    rf"settings\.json|window-\d+\.npy|audio-\d+\.f32|\.lock|{files.TEMPORARY.pattern}"
)


class WindowStore:
    """The folder of one generation; created if it does not exist, otherwise resumed.

    Args:
      folder: its path.
      settings: everything that changes the result, in plain JSON types.
      batch: B.
      codebooks: K.
      card: number of different codes.

    Raises:
      UserError: the folder holds another generation or something else, is damaged, or cannot be
        read or written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: dict,
        *,
        batch: int,
        codebooks: int,
        card: int,
    ):
        self.folder = Path(folder)
        self.rows, self.card = (batch, codebooks), card
        settings = json.loads(json.dumps(settings, default=float))  # as they will be read
        found = self._found()
        if found is not None and _ADDED not in found:
            settings.pop(_ADDED, None)
        if found is None:
            content = json.dumps(settings, indent=2).encode()
            files.write_bytes(self.folder / SETTINGS, content)
        elif found != settings:
            raise UserError(f"cannot resume from {folder}: {_difference(found, settings)}")

    def load(self, window: Window) -> np.ndarray | None:
        """The codes of a finished window, int32 [B, K, t], or None."""
        file = self.folder / _name(window)
        shape = (*self.rows, window.length - (window.prompt if window.number else 0))
        if not file.exists():
            return None
        with user_error("read", file):
            # A file of a different size is not ours, and is not read.
            ours = file.stat().st_size <= 4 * int(np.prod(shape)) + 4096
            content = file.read_bytes() if ours else b""
        try:
            codes = np.load(io.BytesIO(content), allow_pickle=False)
        except Exception:  # numpy raises many kinds on damaged files
            codes = None
        if (
            not isinstance(codes, np.ndarray)
            or codes.dtype != np.int32
            or codes.shape != shape
            or not 0 <= codes.min() <= codes.max() < self.card
        ):
            raise UserError(f"{file} is damaged: delete it, and its window is generated again")
        return codes

    def save(self, window: Window, codes: np.ndarray) -> None:
        """Keeps the codes of a finished window."""
        with files.new_file(self.folder / _name(window)) as file:
            np.save(file, codes.astype(np.int32), allow_pickle=False)

    def _found(self) -> dict | None:
        file = self.folder / SETTINGS
        if not file.exists():
            if self.folder.exists() and any(self.folder.glob("window-*.npy")):
                raise UserError(f"cannot resume from {self.folder}: its {SETTINGS} is missing")
            return None
        try:
            found = files.read_json(file)
        except UserError as error:
            raise UserError(f"cannot continue {self.folder}, delete it: {error}") from None
        # Older versions left it out if the caller did.
        return {"use_sampling": True} | found


def check_ours(folder: str | os.PathLike[str]) -> list[Path]:
    """The files in the folder of a generation; none if there is no folder.

    Raises:
      UserError: the folder holds other files.
    """
    folder = Path(folder)
    found = list(folder.iterdir()) if folder.exists() else []
    if strange := [file.name for file in found if not _OURS.fullmatch(file.name)]:
        raise UserError(
            f"{folder} contains {strange[0]!r}, which musicgen-jax did not write: move it elsewhere"
        )
    return found


def discard(folder: str | os.PathLike[str]) -> None:
    """Deletes the folder of a generation, if there is one.

    Raises:
      UserError: the folder holds other files, or cannot be deleted.
    """
    folder = Path(folder)
    with user_error("delete", folder):
        # The settings go last: windows without settings could belong to any generation.
        for file in sorted(check_ours(folder), key=lambda file: file.name == SETTINGS):
            file.unlink()
        if folder.exists():
            folder.rmdir()


def fingerprint(*modules: nnx.Module) -> str:
    """Identifies a model: a digest of names, sizes, types and up to 256 numbers of every weight."""
    digest = hashlib.sha256()
    for module in modules:
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module))):
            # Its size: the shape depends on the devices, see `sharding.arrange`.
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.size} {leaf.dtype}".encode())
            # On a CPU they are read in place: nothing is compiled or copied.
            probe = _numbers(np.asarray(leaf)) if _on_one_cpu(leaf) else np.asarray(_probe(leaf))
            digest.update(probe.tobytes())
    return digest.hexdigest()


def condition_digest(*conditions: Condition) -> str:
    """A digest of conditions."""
    digest = hashlib.sha256()
    for i, condition in enumerate(conditions):
        # The names that older versions used: their folders must still resume.
        for name, part in (
            ("cross", condition.text),
            ("prefix", condition.audio),
            ("against", condition.against),
        ):
            if part is None:
                continue
            for suffix, leaf in (("", part.vectors), ("_mask", part.mask)):
                digest.update(f"[{i}].{name}{suffix} {leaf.shape} {leaf.dtype}".encode())
                digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def machine(mesh: Mesh | None) -> str:
    """Everything that rounding depends on, apart from the model."""
    one = f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
    if mesh is None or mesh.size == 1:
        return one
    return f"{one}, {' x '.join(map(str, mesh.devices.shape))}"


def _on_one_cpu(weight: jax.Array | np.ndarray) -> bool:
    if isinstance(weight, np.ndarray):
        return True
    return weight.is_fully_addressable and [d.platform for d in weight.devices()] == ["cpu"]


def _numbers(weight: Any) -> Any:
    return weight.reshape(-1)[:: max(1, weight.size // 256)][:256].astype(jnp.float32)


def _probe(weight: jax.Array) -> jax.Array:
    """`_numbers`, whole in every process."""
    sharding = weight.sharding
    if weight.is_fully_addressable or not isinstance(sharding, NamedSharding):
        return _compiled(weight)
    return _compiled(weight, everywhere=NamedSharding(sharding.mesh, PartitionSpec()))


@partial(jax.jit, static_argnames="everywhere")
def _compiled(weight: jax.Array, *, everywhere: NamedSharding | None = None) -> jax.Array:
    numbers = _numbers(weight)
    return numbers if everywhere is None else lax.with_sharding_constraint(numbers, everywhere)


def _name(window: Window) -> str:
    return f"window-{window.number:05d}.npy"


def _difference(found: dict, wanted: dict) -> str:
    """The first difference. The condition comes last, since it follows from others (the text)."""
    keys = sorted(found.keys() | wanted.keys(), key=lambda key: (key == "condition", key))
    for key in ["model", *keys]:
        before, now = (given.get(key, "nothing") for given in (found, wanted))
        if before != now and key in _DIGESTS:
            return f"it was started with a different {_DIGESTS[key]}"
        if before != now:
            return f"it was started with {key} {before!r:.80}, not {now!r:.80}"
    raise AssertionError("no difference")


_DIGESTS = {
    "model": "model",
    "condition": "condition (description, melody or style)",
    "followed": "melody or style",
    "prompt": "prompt",
}
