"""Nested dicts of arrays on disk, as Orbax trees."""

import contextlib
import errno
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# v1 is Orbax's current interface; v0 still works but gets nothing new.
from orbax.checkpoint import v1 as ocp

from musicgen_jax.errors import UserError, reason
from musicgen_jax.runtime.memory import nbytes

Params = dict[str, Any]  # nested dicts; the leaves are arrays
LeafPath = tuple[str, ...]  # of a leaf, from the root
_PART_BYTES = 1 << 26  # read at once


def save(folder: Path, params: Mapping[str, Any], *, compress: bool) -> None:
    """Writes a tree as `folder`. Host arrays are written in place, without a copy.

    If there are several processes, all of them call this.

    Args:
      folder: must not exist.
      params: nested dicts of numpy or jax arrays; their keys are strings.
      compress: whether chunks are compressed. Float weights barely shrink, and Orbax holds
        compressed chunks in memory until the end.

    Raises:
      OSError: the tree cannot be written, or there is too little space for it.
    """
    if not compress:
        _check_space(folder.parent, params)
    context = ocp.Context()
    # The save is synchronous, so nobody can change the arrays meanwhile: no copy is needed.
    context.memory.deepcopy_host_arrays = False
    context.array.saving.use_compression = compress
    try:
        with context, _quiet():
            ocp.save(str(folder), params)
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise OSError(reason(error)) from error
    if jax.process_index() == 0:
        remove_paths(folder)


def _check_space(folder: Path, params: Mapping[str, Any]) -> None:
    """Refuses before the disk is full: later, TensorStore would print pages of errors."""
    needed, free = nbytes(params), shutil.disk_usage(folder).free
    if needed > free:
        message = f"{needed / 1e6:.0f} MB more are needed, but only {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, message)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from also logging the tracebacks of errors that it raises."""

    def not_from_orbax(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(not_from_orbax)
    try:
        yield
    finally:
        logger.removeFilter(not_from_orbax)


def remove_paths(folder: Path) -> None:
    """Removes the path on the writing machine that Orbax records in every tree.

    The file with the record stays, since readers on some file systems look for it.
    """
    note = folder / "commit_success.txt"
    if note.is_file():
        note.write_text("Checkpoint commit was successful", encoding="utf-8")


def stored_shapes(folder: Path) -> dict[LeafPath, Any]:
    """Shape and dtype of every leaf of a tree on disk, by path.

    Raises:
      ValueError: there is no tree in `folder`.
    """
    shapes = flatten(ocp.metadata(str(folder)).metadata)
    if () in shapes:  # for some damage Orbax gives None instead of a tree
        raise ValueError("not a tree")
    return shapes


def load(folder: Path, requests: Mapping[LeafPath, Any]) -> dict[LeafPath, Any]:
    """Reads some leaves of a tree.

    Args:
      folder: of the tree.
      requests: by path; a `jax.ShapeDtypeStruct` with a sharding gives a `jax.Array` of that dtype
        and sharding, a numpy array a numpy array. Each process reads its own part and waits for no
        other: it may also read leaves that the others do not need.
    """
    context = ocp.Context()
    context.multiprocessing.active_processes = {jax.process_index()}
    context.multiprocessing.primary_host = jax.process_index()
    context.pytree.loading.partial_load = True
    with context:
        return flatten(ocp.load(str(folder), unflatten(requests)))


def parts(stored: Mapping[LeafPath, Any]) -> Iterator[list[LeafPath]]:
    """Paths in groups of at most 64 MiB; int8 numbers and their scale are in one group."""
    groups: dict[LeafPath, list[LeafPath]] = {}
    for path in stored:
        whole = path[-1] in ("int8", "scale") and (*path[:-1], "int8") in stored
        groups.setdefault(path[:-1] if whole else path, []).append(path)
    part, size = [], 0
    for paths in groups.values():
        more = sum(stored[p].dtype.itemsize * int(np.prod(stored[p].shape)) for p in paths)
        if part and size + more > _PART_BYTES:
            yield part
            part, size = [], 0
        part, size = part + paths, size + more
    if part:
        yield part


def check_finite(leaves: Mapping[LeafPath, Any], what: str) -> None:
    """Raises UserError, beginning with `what`, if a leaf holds NaN or an infinity."""
    for path, leaf in leaves.items():
        shards = leaf.addressable_shards if isinstance(leaf, jax.Array) else ()
        blocks = [shard.data for shard in shards if shard.replica_id == 0] if shards else [leaf]
        if not all(_finite(np.asarray(block)) for block in blocks):
            raise UserError(f"{what}: {'/'.join(path)} holds weights that are NaN or infinite")


def _finite(block: np.ndarray) -> bool:
    if not jnp.issubdtype(block.dtype, jnp.floating):
        return True
    # A sum is finite only if all terms are, and takes a fraction of the time of checking each.
    with np.errstate(all="ignore"):
        if np.isfinite(block.sum(dtype=np.float32)):
            return True
    return bool(np.isfinite(block).all())


# --- Trees -------------------------------------------------------------------------------------


def flatten(tree: Any, path: LeafPath = ()) -> dict[LeafPath, Any]:
    """The leaves of nested dicts by path; indices of lists become strings, as on disk."""
    if isinstance(tree, Mapping):
        items = (flatten(value, (*path, str(key))) for key, value in tree.items())
        return {k: v for flat in items for k, v in flat.items()}
    return {path: tree}


def unflatten(flat: Mapping[LeafPath, Any]) -> Params:
    """Nested dicts from leaves by path."""
    tree: Params = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree
