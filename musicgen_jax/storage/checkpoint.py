"""One model, one folder: `config.json`, the tokenizer, a licence and one Orbax tree per component.

    musicgen-small/
      config.json        architecture, format version, source; written last
      tokenizer.model    sentencepiece
      LICENSE
      lm/  t5/  encodec/ Orbax trees of plain nested dicts, each loadable alone; of the style model
                         also mert/

A folder is filled under a temporary name and renamed when complete, so an interrupted run leaves
nothing that loads. `config.json` also counts the files and bytes of every tree: a deleted or
truncated file is found before anything is read.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

# v1 is Orbax's current interface; v0 still works but gets nothing new.
from orbax.checkpoint import v1 as ocp

from musicgen_jax.config import (
    FORMAT_VERSION,
    EncodecConfig,
    HTDemucsConfig,
    LMConfig,
    MertConfig,
    MusicGenConfig,
    T5Config,
    from_dict,
    to_dict,
)
from musicgen_jax.errors import UserError
from musicgen_jax.runtime import memory
from musicgen_jax.runtime.sharding import place
from musicgen_jax.storage import int8_storage

COMPONENTS = {
    "t5": T5Config,
    "mert": MertConfig,
    "lm": LMConfig,
    "encodec": EncodecConfig,
    "separator": HTDemucsConfig,  # a folder of its own, no part of any model
}
ComponentConfig = T5Config | MertConfig | LMConfig | EncodecConfig | HTDemucsConfig
TOKENIZER = "tokenizer.model"
CONFIG = "config.json"
STORAGES = ("plain", "int8")

Params = dict[str, Any]  # nested dicts; the leaves are arrays


class ModelWriter:
    """Fills one model folder, component by component. Made by `writing_model`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._components: dict[str, dict] = {}

    def write_component(self, name: str, params: Params, *, storage: str = "plain") -> None:
        """Writes one tree. Host arrays are written from where they lie, without a second copy.

        Args:
          name: "t5", "mert", "lm" or "encodec".
          params: nested dicts of numpy or jax arrays, of any float dtype, kept as they are.
          storage: "plain", or "int8": every leaf of two or more axes as int8 with one float32
            scale per output channel (at most 1/254 of the channel's largest weight away).
        """
        if name not in COMPONENTS:
            raise ValueError(f"component must be one of {', '.join(COMPONENTS)}, got {name!r}")
        if storage not in STORAGES:
            raise UserError(f"storage must be one of {', '.join(STORAGES)}, got {storage!r}")
        params = _string_keys(params)
        if storage == "int8":
            params = _map_leaves(lambda path, leaf: int8_storage.quantize(name, path, leaf), params)
        context = ocp.Context()
        # The save is synchronous, so nobody can change the arrays meanwhile: no copy is needed.
        context.memory.deepcopy_host_arrays = False
        # Float weights barely compress, and compressed chunks are held in memory until the end.
        context.array.saving.use_compression = storage == "int8"
        with context:
            ocp.save(str(self._folder / name), params)
        files, size = _files_and_bytes(self._folder / name)
        self._components[name] = {"storage": storage, "files": files, "bytes": size}

    def copy_component(self, source: str | os.PathLike, name: str) -> None:
        """Copies one tree of another model, file by file.

        Args:
          source: the other model's folder.
          name: as for `write_component`.
        """
        info = load_info(source)
        shutil.copytree(Path(source) / name, self._folder / name)
        self._components[name] = info.components[name]

    def finish(
        self,
        config: MusicGenConfig | Mapping[str, ComponentConfig],
        *,
        tokenizer: str | os.PathLike | bytes | None,
        license: str,
        source: dict,
    ) -> None:
        """Writes the small files, `config.json` last.

        Args:
          config: of the whole model, or {component: its config} where only parts were written.
          tokenizer: sentencepiece model, as a path or as bytes; None only without "t5".
          license: text of LICENSE, under which the weights may be used.
          source: where the weights come from, in plain JSON types.
        """
        if isinstance(config, MusicGenConfig):
            architecture, expected = to_dict(config), set(component_configs(config))
        else:
            architecture = {name: to_dict(part) for name, part in config.items()}
            expected = set(config)
        if expected != set(self._components):
            raise ValueError(f"config names {sorted(expected)}, written {list(self._components)}")
        if jax.process_index():
            return
        if tokenizer is not None:
            data = tokenizer if isinstance(tokenizer, bytes) else Path(tokenizer).read_bytes()
            (self._folder / TOKENIZER).write_bytes(data)
        elif "t5" in expected:
            raise ValueError("a model with a text encoder needs its tokenizer")
        (self._folder / "LICENSE").write_text(license, encoding="utf-8")
        document = {
            "format_version": FORMAT_VERSION,
            "architecture": architecture,
            "source": source,
            "components": self._components,
        }
        text = json.dumps(document, indent=2) + "\n"
        (self._folder / CONFIG).write_text(text, encoding="utf-8")


def component_configs(config: MusicGenConfig) -> dict[str, ComponentConfig]:
    """The configs of those components that a model has, in the order of the pipeline."""
    parts = {name: getattr(config, name, None) for name in COMPONENTS}
    return {name: part for name, part in parts.items() if part is not None}


@contextlib.contextmanager
def writing_model(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[ModelWriter]:
    """Context in which a model folder is filled; it appears at `path` only on success.

    Where there are several processes all of them do the same, and one of them writes what is not
    cut into parts.

    Args:
      path: the folder to make. Its parents are made as well; all processes must see it.
      overwrite: replaces a model that is there already.

    Raises:
      UserError: something is at `path` already, and it is not a model to be overwritten.
    """
    target = Path(path).absolute()
    if target.exists():
        empty = target.is_dir() and not any(target.iterdir())
        if not empty and not (overwrite and (target / CONFIG).is_file()):
            hint = (
                "it is not a model"
                if overwrite
                else "choose another folder, or ask to overwrite it"
            )
            raise UserError(f"{target} exists already: {hint}")
    meet("a model's folder has been looked at")
    aside, first = target.with_name(f".{target.name}.partial"), jax.process_index() == 0
    if first:
        shutil.rmtree(aside, ignore_errors=True)  # what an interrupted run left
        aside.mkdir(parents=True)
    meet("a model's folder can be filled")
    try:
        writer = ModelWriter(aside)
        yield writer
        meet("a model's folder is full")
        if first:
            if not (aside / CONFIG).is_file():
                raise ValueError("writing_model left without a call of finish()")
            replace_folder(aside, target)
    except BaseException:
        if first:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    meet("a model's folder stands")


def save_model(
    path: str | os.PathLike,
    config: MusicGenConfig,
    params: Mapping[str, Params],
    *,
    tokenizer: str | os.PathLike | bytes,
    license: str,
    source: dict,
    storage: str = "plain",
    overwrite: bool = False,
) -> None:
    """Writes a whole model folder at once.

    Args:
      path: the folder to make.
      config: architecture.
      params: {"t5" | "mert" | "lm" | "encodec": nested dicts of arrays}, those of the model.
      tokenizer: sentencepiece model, as a path or as bytes.
      license: text under which the weights may be used.
      source: where the weights come from, in plain JSON types.
      storage: "plain" or "int8", see `ModelWriter.write_component`.
      overwrite: replaces a model that is there already.
    """
    with writing_model(path, overwrite=overwrite) as writer:
        for name in component_configs(config):
            writer.write_component(name, params[name], storage=storage)
        writer.finish(config, tokenizer=tokenizer, license=license, source=source)


# --- Reading -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What `config.json` says."""

    config: MusicGenConfig | None  # None: the folder holds only some components
    parts: dict[str, ComponentConfig]  # config by component
    source: dict
    components: dict[str, dict]  # storage, files, bytes by component


def load_info(path: str | os.PathLike) -> ModelInfo:
    """Reads `config.json` of the model folder `path`.

    Raises:
      UserError: there is no folder, no complete model in it, or its config is not understood.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}")
    file = folder / CONFIG
    if not file.is_file():
        if any((folder / name).is_dir() for name in COMPONENTS):
            raise UserError(f"{folder} has no {CONFIG}: incomplete or interrupted, write it again")
        raise UserError(f"{folder} is not a model: it has no {CONFIG}")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(document, dict) or "format_version" not in document:
        raise UserError(f"{file} has no format_version: convert the model with musicgen-jax first")
    if document["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{file} has format version {document['format_version']!r}, this musicgen-jax reads "
            f"{FORMAT_VERSION}: convert the model again or use another release"
        )
    known = {"format_version", "architecture", "source", "components"}
    if document.keys() != known:
        faults = [f"unknown field {name}" for name in sorted(document.keys() - known)]
        faults += [f"field {name} is missing" for name in sorted(known - document.keys())]
        raise UserError(f"{file}: {', '.join(faults)}")
    architecture, components = document["architecture"], document["components"]
    for name in ("architecture", "source", "components"):
        if not isinstance(document[name], dict):
            raise UserError(f"{file}: {name} must be an object")
    for name, entry in components.items():
        counts = isinstance(entry, dict) and (entry.get("files"), entry.get("bytes"))
        if name not in COMPONENTS or not counts or not all(type(n) is int for n in counts):
            raise UserError(f"{file}: components.{name} is not a component with files and bytes")
        if entry.get("storage") not in STORAGES:
            raise UserError(f"{file}: components.{name}.storage must be one of {STORAGES}")
    try:
        if set(architecture) <= set(COMPONENTS):
            config = None
            parts = {n: from_dict(COMPONENTS[n], architecture[n], n) for n in architecture}
        else:
            config = from_dict(MusicGenConfig, architecture, "architecture")
            parts = component_configs(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: {error}") from None
    if set(parts) != set(components):
        raise UserError(f"{file}: architecture and components name different parts")
    return ModelInfo(config, parts, document["source"], components)


def load_config(path: str | os.PathLike) -> MusicGenConfig:
    """The architecture of the whole model in the folder `path`.

    Raises:
      UserError: as `load_info`, or the folder holds only some of the components.
    """
    info = load_info(path)
    if info.config is None:
        raise UserError(f"{path} holds only {', '.join(info.parts)}, not a whole MusicGen model")
    return info.config


def load_params(
    path: str | os.PathLike,
    component: str,
    abstract: Params,
    *,
    keep_dtypes: bool = False,
    partial: bool = False,
) -> Params:
    """Restores one component straight into the dtypes and shardings of an abstract tree.

    Args:
      path: the model folder.
      component: "t5", "mert", "lm" or "encodec".
      abstract: nested dicts of `jax.ShapeDtypeStruct`, as `nnx.eval_shape` gives them. Leaves
        without a sharding go to the default device. Stored values are cast to the leaf's dtype.
        In place of a matrix may stand {"int8": [..., O, I], "scale": [..., O, 1]}: taken from
        "int8" storage as it is, rounded on the way from "plain".
      keep_dtypes: the leaves keep the dtypes that they are stored in (float32 those of "int8").
      partial: what the component holds under other names at the top is left where it is.

    Returns:
      The same nested dicts, of `jax.Array`.

    Raises:
      UserError: the component is missing, damaged, or its leaves are not the abstract tree's;
        the message names them.
    """
    info, folder = load_info(path), Path(path).absolute() / component
    if component not in info.components:
        raise UserError(f"{path} has no component {component!r}, only {', '.join(info.parts)}")
    entry = info.components[component]
    damaged = f"{folder} is damaged or incomplete: download or convert the model again"
    if _files_and_bytes(folder) != (entry["files"], entry["bytes"]):
        raise UserError(damaged)

    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    wanted: dict[tuple[str, ...], Any] = {
        tuple(str(key.key) for key in keys): leaf for keys, leaf in leaves
    }
    int8 = entry["storage"] == "int8"
    try:
        stored = _flatten(ocp.metadata(str(folder)).metadata)  # type: ignore[arg-type]
    except Exception as error:  # Orbax raises many kinds on damaged files
        raise UserError(damaged) from error
    if () in stored:  # for some damage it gives None in place of a tree
        raise UserError(damaged)
    if partial:
        stored = {key: leaf for key, leaf in stored.items() if key[0] in abstract}
    _check_leaves(folder, int8_storage.shapes(wanted), int8_storage.shapes(stored))

    if keep_dtypes and not int8:
        wanted = {
            key: jax.ShapeDtypeStruct(leaf.shape, stored[key].dtype, sharding=leaf.sharding)
            for key, leaf in wanted.items()
        }

    default = jnp.zeros(()).sharding

    def target(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or default)

    placed: dict[tuple[str, ...], jax.Array] = {}
    try:
        with memory.mapped():
            if wanted.keys() <= stored.keys() and not int8:
                for part in _parts(stored):
                    placed |= _load_part(folder, {key: target(wanted[key]) for key in part})
                    memory.give_back()
            else:  # restored on the host, part by part, then scaled, then placed
                for part in _parts(stored):
                    here = {key: np.empty(stored[key].shape, stored[key].dtype) for key in part}
                    loaded = _load_part(folder, here)
                    for key in wanted:
                        if key[-1] == "int8" and key[:-1] in loaded:
                            quantized = int8_storage.quantize(component, key[:-1], loaded[key[:-1]])
                            loaded |= {(*key[:-1], name): leaf for name, leaf in quantized.items()}
                    for key, leaf in wanted.items():
                        if key in loaded or (*key, "int8") in loaded:
                            value = int8_storage.dequantize(loaded, key, leaf)
                            placed[key] = place(value, target(leaf).sharding)
                    del loaded
                    memory.give_back()
    except Exception as error:
        raise UserError(damaged) from error
    return jax.tree.unflatten(structure, [placed[key] for key in wanted])


def replace_folder(aside: Path, target: Path) -> None:
    """Puts a folder in another's place; that one is deleted last, when the new one stands."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(aside, target)
    except BaseException:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


# --- Helpers -----------------------------------------------------------------------------------


def meet(what: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _string_keys(tree: Any) -> Any:
    """List indices become strings, as they are on disk."""
    if isinstance(tree, Mapping):
        return {str(key): _string_keys(value) for key, value in tree.items()}
    return tree


def _map_leaves(function, tree: Any, path: tuple[str, ...] = ()) -> Any:
    if isinstance(tree, Mapping):
        return {k: _map_leaves(function, v, (*path, k)) for k, v in tree.items()}
    return function(path, tree)


def _flatten(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(tree, Mapping):
        items = (_flatten(value, (*path, str(key))) for key, value in tree.items())
        return {k: v for flat in items for k, v in flat.items()}
    return {path: tree}


def _unflatten(flat: Mapping[tuple[str, ...], Any]) -> Params:
    tree: Params = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def _files_and_bytes(folder: Path) -> tuple[int, int]:
    """Counts regular files; hidden ones are the operating system's (`.DS_Store`), not ours."""
    files = [f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(".")]
    return len(files), sum(f.stat().st_size for f in files)


def _check_leaves(folder: Path, wanted: Mapping, stored: Mapping) -> None:
    missing = ["/".join(path) for path in wanted if path not in stored]
    extra = ["/".join(path) for path in stored if path not in wanted]
    shapes = [
        f"{'/'.join(path)} is {tuple(stored[path].shape)}, not {tuple(leaf.shape)}"
        for path, leaf in wanted.items()
        if path in stored and tuple(stored[path].shape) != tuple(leaf.shape)
    ]
    faults = [
        f"{what} {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if names[5:] else "")
        for what, names in (("missing", missing), ("unexpected", extra), ("wrong shape:", shapes))
        if names
    ]
    if faults:
        raise UserError(f"{folder} does not fit its architecture: {'; '.join(faults)}")


def _parts(stored: Mapping) -> Iterator[list[tuple[str, ...]]]:
    """Paths in groups of at most 64 MiB, a leaf never apart from its scale."""
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in stored:
        whole = path[-1] in ("int8", "scale") and (*path[:-1], "int8") in stored
        groups.setdefault(path[:-1] if whole else path, []).append(path)
    part, size = [], 0
    for paths in groups.values():
        more = sum(stored[p].dtype.itemsize * int(np.prod(stored[p].shape)) for p in paths)
        if part and size + more > 1 << 26:
            yield part
            part, size = [], 0
        part, size = part + paths, size + more
    if part:
        yield part


def _load_part(folder: Path, requests: Mapping[tuple[str, ...], Any]) -> dict:
    """Some of a component's leaves, as arrays like those that are given for them."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return _flatten(ocp.load(str(folder), _unflatten(requests)))
