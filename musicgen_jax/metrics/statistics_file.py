"""Mean and covariance of a reference set in a `.npz`: a set without its audio.

    mean, covariance   float64 [D] and [D, D]
    about              uint8, JSON: embedding, protocol, weights, clips and rows

fadtk's own file is read too: it has `NAME.mu` and `NAME.cov` for each embedding.
"""

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_jax import files
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.frechet import Gaussian, gaussian_of
from musicgen_jax.storage.hub import models_home

NAMED = {
    "fma_pop": "take fadtk/stats/fma_pop.npz out of the wheel of fadtk 1.1.0 (`pip download "
    "--no-deps fadtk==1.1.0`, then `unzip` it)"
}
_MAX_BYTES = 256 << 20
_MAX_MEMBERS = 1000


def write(path: str | os.PathLike, gaussian: Gaussian, about: dict[str, Any]) -> Path:
    """Writes statistics; the file appears whole or not at all.

    Args:
      path: ends in .npz.
      gaussian: mean and covariance.
      about: the embedding that they are of, in plain JSON types.

    Raises:
      UserError: the name has another suffix, or the path cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise UserError(f"statistics are written to a .npz file, got {path}")
    data = io.BytesIO()
    np.savez(
        data,
        mean=gaussian.mean,
        covariance=gaussian.covariance,
        about=np.frombuffer(json.dumps(about | {"rows": gaussian.count}).encode(), np.uint8),
    )
    files.write_bytes(path, data.getvalue())
    return path


def find(place: str | os.PathLike[str]) -> Path | None:
    """The file of statistics that a reference names; None if it names something else.

    Args:
      place: ends in .npz, or is one of `NAMED`, which lie in `statistics` in `hub.models_home()`.

    Raises:
      UserError: a named file does not exist; the message says how to get it.
    """
    if str(place) in NAMED and not Path(place).exists():
        file = models_home() / "statistics" / f"{place}.npz"
        if not file.is_file():
            raise UserError(f"no {file}: {NAMED[str(place)]} and copy it there")
        return file
    return Path(place) if Path(place).suffix.lower() == ".npz" else None


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file of statistics."""
    return hashlib.sha256(files.read_bytes(path, _MAX_BYTES)).hexdigest()


def read(path: str | os.PathLike, embedding: str) -> tuple[Gaussian, dict[str, Any]]:
    """Reads statistics of one embedding.

    Args:
      path: of a file that `write` made, of one with `mu` and `cov`, or of fadtk's.
      embedding: its name, such as "vggish"; picks the entry of fadtk's file.

    Returns:
      the statistics, and what the file says about itself ({} if nothing).

    Raises:
      UserError: the file is missing, damaged, too large, or of another embedding.
    """
    path = Path(path)
    arrays = _arrays(path)
    pairs = (("mean", "covariance"), (f"{embedding}.mu", f"{embedding}.cov"), ("mu", "cov"))
    pair = next((pair for pair in pairs if set(pair) <= arrays.keys()), None)
    if pair is None:
        found = ", ".join(sorted(arrays)[:8]) or "nothing"
        raise UserError(f"{path} contains no statistics of {embedding}, only {found}")
    about = _about(arrays.get("about"), path)
    if about.get("embedding", embedding) != embedding:
        raise UserError(f"{path} contains statistics of {about['embedding']}, not of {embedding}")
    rows = about.get("rows", 0)
    try:
        mean, covariance = (arrays[name] for name in pair)
        return gaussian_of(mean, covariance, rows if type(rows) is int else 0), about
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The description in a file of statistics, and "dimensions": D of each of its entries.

    Raises:
      UserError: the file is missing, damaged or too large, or contains no statistics.
    """
    path = Path(path)
    arrays = _arrays(path)
    names = {n: n.removesuffix(".mu") for n in arrays if n in ("mean", "mu") or n.endswith(".mu")}
    dimensions = {
        entry: len(arrays[name])
        for name, entry in names.items()
        if name in arrays and arrays[name].ndim == 1
    }
    if not dimensions:
        raise UserError(f"{path} contains no statistics")
    return _about(arrays.get("about"), path) | {"dimensions": dimensions}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file from outside."""
    try:
        if not path.is_file():
            raise UserError(f"{path} is not a file")
        return _load(path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # damaged bytes fail in as many ways as there are bytes
        raise UserError(f"{path} is not a file of statistics, or is damaged: {error}") from None


def _load(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # Before anything is unpacked: a small zip may hold a huge array.
        if len(members) > _MAX_MEMBERS or sum(info.file_size for info in members) > _MAX_BYTES:
            raise UserError(f"{path} is too large for a file of statistics")
    with np.load(path, allow_pickle=False) as arrays:
        loaded = {name: arrays[name] for name in arrays.files}
    if strange := [name for name, value in loaded.items() if not isinstance(value, np.ndarray)]:
        raise ValueError(f"{strange[0]!r:.50} in it is not an array")
    return loaded


def _about(value: np.ndarray | None, path: Path) -> dict[str, Any]:
    if value is None:
        return {}
    try:
        about = json.loads(value.astype(np.uint8).tobytes())
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{path} is damaged: it does not say what it is about")
    return about
