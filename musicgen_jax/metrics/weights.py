"""Finds and loads the converted weights of a metric's network."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from musicgen_jax.errors import UserError
from musicgen_jax.nn.shapes import filled, module_shapes
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.hub import models_home

Network = TypeVar("Network", bound=nnx.Module)


def load_network(
    component: str,
    network: Callable[..., Network],
    folder: str | os.PathLike | None,
    source: str,
) -> Network:
    """A network with its weights, in float32.

    Args:
      component: its name in a folder of `checkpoint`, such as "vggish".
      network: its class, called with its config.
      folder: of the converted weights; default: one of the component's name in `models_home()`.
      source: the file to convert, for the message where there is no folder.

    Raises:
      UserError: there is no such folder, or it holds something else.
    """
    place = place_of(component, folder)
    if place.is_file():
        raise UserError(f"{place} is a file: first run `musicgen-jax convert {place} OUT`")
    if not place.is_dir():
        raise UserError(
            f"no weights of {component} in {place}: run `musicgen-jax convert FILE {place}` with "
            f"{source}"
        )
    info = checkpoint.load_info(place)
    if component not in info.parts:
        raise UserError(f"{place} holds no {component}, only {', '.join(info.parts)}")
    shapes = module_shapes(network, info.parts[component])
    return filled(shapes, partial(checkpoint.load_params, place, component))


@jax.jit
def run(network: Callable[..., Any], *inputs: Any) -> Any:
    """`network(*inputs)` with products in full float32, also on an accelerator."""
    with jax.default_matmul_precision("float32"):
        return network(*inputs)


def place_of(component: str, folder: str | os.PathLike | None) -> Path:
    """The folder of the weights of a component; see `load_network`."""
    return models_home() / component if folder is None else Path(os.path.expanduser(folder))


def weights_digest(*modules: nnx.Module) -> str:
    """SHA-256 of the names, types, shapes and numbers of weights, to identify them in a report."""
    digest = hashlib.sha256()
    for module in modules:
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module))):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
            digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
