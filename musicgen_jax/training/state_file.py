"""The state of a training run in a folder, replaced whole; `run.Run` keeps several and more."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from musicgen_jax.errors import UserError
from musicgen_jax.storage.checkpoint import replace_folder


def save_state(path: str | os.PathLike, state: Any) -> None:
    """Saves any pytree of arrays as the folder `path`, in place of what was there.

    Written aside and renamed: at every moment either the old state or the new one is whole.
    """
    target = Path(path).absolute()
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    ocp.save(str(aside), _named_leaves(state))
    replace_folder(aside, target)


def load_state(path: str | os.PathLike, abstract: Any) -> Any:
    """Restores what `save_state` saved into the structure, shapes and dtypes of `abstract`.

    Raises:
      UserError: there is no state, it is damaged, or it is of another structure.
    """
    target = Path(path).absolute()
    old = target.with_name(f".{target.name}.old")
    if not target.exists() and old.exists():  # stopped between the two renames
        os.replace(old, target)
    if not target.is_dir():
        raise UserError(f"no training state at {target}")
    default = jnp.zeros(()).sharding
    named = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=default)
        for name, leaf in _named_leaves(abstract).items()
    }
    try:
        loaded = ocp.load(str(target), named)
    except Exception as error:  # Orbax raises many kinds on damaged files
        raise UserError(f"{target} is damaged or of another run: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(abstract), [loaded[name] for name in named])


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}
