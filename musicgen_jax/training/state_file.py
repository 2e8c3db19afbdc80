"""Saves one training state in a folder, replaced atomically. `run.Run` keeps several states."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from musicgen_jax import files
from musicgen_jax.errors import UserError
from musicgen_jax.storage.arrays import remove_paths
from musicgen_jax.training.run import named_leaves


def save_state(path: str | os.PathLike, state: Any) -> None:
    """Saves a pytree of arrays as the folder `path` and replaces any previous state.

    At every moment, either the old state or the new one is complete.
    """
    with files.new_folder(path, overwrite=True, ours=lambda folder: True) as folder:
        written = folder / "written"  # Orbax creates its own folder
        ocp.save(str(written), named_leaves(state))
        remove_paths(written)
        for entry in written.iterdir():
            entry.rename(folder / entry.name)
        written.rmdir()


def load_state(path: str | os.PathLike, abstract: Any) -> Any:
    """Loads a state that `save_state` saved, with the structure, shapes and dtypes of `abstract`.

    Raises:
      UserError: the state does not exist, is damaged, or has another structure.
    """
    target = Path(path).absolute()
    files.restore(target)
    if not target.is_dir():
        raise UserError(f"no training state at {target}")
    default = jnp.zeros(()).sharding
    named = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=default)
        for name, leaf in named_leaves(abstract).items()
    }
    try:
        loaded = ocp.load(str(target), named)
    except Exception as error:  # Orbax raises many types on damaged files
        raise UserError(f"{target} is damaged or of another run: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(abstract), [loaded[name] for name in named])
