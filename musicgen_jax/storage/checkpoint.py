"""One model, one folder: `config.json`, the tokenizer, a licence and one Orbax tree per component.

    musicgen-small/
      config.json        architecture, format version, source; written last
      tokenizer.model    sentencepiece
      LICENSE
      lm/  t5/  encodec/ Orbax trees of plain nested dicts, each loadable alone; the style model
                         also has mert/

A folder is filled under a temporary name and renamed when it is complete, so an interrupted run
leaves nothing that loads. `config.json` also counts the files and bytes of every tree: a deleted or
truncated file is found before anything is read.

A tree can be that of the bundled model nano: then `config.json` says `"of": "nano"` and counts that
tree. So the wheel, which cannot contain links, holds the trees that its two models share only once.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musicgen_jax import files
from musicgen_jax.config import (
    FORMAT_VERSION,
    ClapConfig,
    EncodecConfig,
    HTDemucsConfig,
    LMConfig,
    MertConfig,
    MusicGenConfig,
    PasstConfig,
    T5Config,
    VggishConfig,
    from_dict,
    to_dict,
)
from musicgen_jax.errors import UserError, machine_fault, user_error
from musicgen_jax.runtime import memory
from musicgen_jax.runtime.processes import barrier, from_first
from musicgen_jax.runtime.sharding import place
from musicgen_jax.storage import arrays, hub, int8_storage
from musicgen_jax.storage.arrays import LeafPath, Params

COMPONENTS = {
    "t5": T5Config,
    "mert": MertConfig,
    "lm": LMConfig,
    "encodec": EncodecConfig,
    # Each is in its own folder and not part of any model:
    "separator": HTDemucsConfig,
    "vggish": VggishConfig,
    "passt": PasstConfig,
    "clap": ClapConfig,
}
ComponentConfig = (
    T5Config
    | MertConfig
    | LMConfig
    | EncodecConfig
    | HTDemucsConfig
    | VggishConfig
    | PasstConfig
    | ClapConfig
)
TOKENIZER = "tokenizer.model"
CONFIG = "config.json"
STORAGES = ("plain", "int8")


class ModelWriter:
    """Fills one model folder, component by component. Made by `writing_model`."""

    def __init__(self, folder: Path, target: Path):
        self._folder, self._target = folder, target
        self._components: dict[str, dict] = {}

    def write_component(self, name: str, params: Params, *, storage: str = "plain") -> None:
        """Writes one tree.

        Args:
          name: "t5", "mert", "lm", "encodec" or "separator".
          params: nested dicts of numpy or jax arrays, of any float dtype, kept as they are.
          storage: "plain", or "int8": every leaf of two or more axes as int8 with one float32 scale
            per output channel (the error is at most 1/254 of the channel's largest weight).

        Raises:
          UserError: a weight is NaN or infinite, or the tree cannot be written.
        """
        if name not in COMPONENTS:
            raise ValueError(f"component must be one of {', '.join(COMPONENTS)}, got {name!r}")
        if storage not in STORAGES:
            raise UserError(f"storage must be one of {', '.join(STORAGES)}, got {storage!r}")
        leaves = arrays.flatten(params)
        arrays.check_finite(leaves, f"cannot write {self._target}: {name}")
        if storage == "int8":
            leaves = {key: int8_storage.quantize(name, key, leaf) for key, leaf in leaves.items()}
        with user_error("write", self._target):
            arrays.save(self._folder / name, arrays.unflatten(leaves), compress=storage == "int8")
        self._count(name, storage)

    def copy_component(self, source: str | os.PathLike[str], name: str) -> None:
        """Copies one tree of another model, file by file.

        Args:
          source: the other model's folder.
          name: see `write_component`.

        Raises:
          UserError: it cannot be copied, or holds a link or something that is not a file.
        """
        info = load_info(source)
        if jax.process_index() == 0:
            files.copy_folder(component_folder(source, name, info), self._folder / name)
            arrays.remove_paths(self._folder / name)
        barrier("a component has been copied")
        self._count(name, info.components[name]["storage"])

    def share_component(self, name: str) -> None:
        """Uses a tree of the bundled model nano, without a copy."""
        entry = load_info(hub.find_model(hub.BUNDLED)).components[name]
        self._components[name] = {**entry, "of": hub.BUNDLED}

    def write_file(self, name: str, data: bytes) -> None:
        """Writes a small file of the model's own next to `config.json`."""
        if jax.process_index() == 0:
            with user_error("write", self._target):
                (self._folder / name).write_bytes(data)

    def _count(self, name: str, storage: str) -> None:
        count, size = _files_and_bytes(self._folder / name)
        self._components[name] = {"storage": storage, "files": count, "bytes": size}

    def check_complete(self) -> None:
        """Raises UserError unless everything that `config.json` counts is in the folder."""
        if not (self._folder / CONFIG).is_file():
            raise ValueError("writing_model ended without a call of finish()")
        own = {name: entry for name, entry in self._components.items() if "of" not in entry}
        for name, entry in own.items():
            if _files_and_bytes(self._folder / name) != (entry["files"], entry["bytes"]):
                raise UserError(f"cannot write {self._target}: {name} changed while it was written")

    def finish(
        self,
        config: MusicGenConfig | Mapping[str, ComponentConfig],
        *,
        tokenizer: str | os.PathLike[str] | bytes | None,
        license: str,
        source: dict,
    ) -> None:
        """Writes the small files, `config.json` last.

        Args:
          config: of the whole model, or {component: its config} if only some were written.
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
            raise ValueError(
                f"config names {sorted(expected)}, but {list(self._components)} were written"
            )
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
    """The configs of the components that a model has, in the order of the pipeline."""
    parts = {name: getattr(config, name, None) for name in COMPONENTS}
    return {name: part for name, part in parts.items() if part is not None}


def _is_model(folder: Path) -> bool:
    """Whether we wrote it: many folders have a config.json, those of transformers among them."""
    with contextlib.suppress(UserError):
        return "format_version" in files.read_json(folder / CONFIG)
    return False


@contextlib.contextmanager
def writing_model(
    path: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[ModelWriter]:
    """Context in which a model folder is filled; it appears at `path` only on success.

    If there are several processes, all of them do the same; the first one writes everything that is
    not sharded.

    Args:
      path: the folder to make, with its missing parents. All processes must see it.
      overwrite: replaces a model that is there already.

    Raises:
      UserError: something is at `path` and stays there, or the folder cannot be written.
    """
    target, first = Path(path).absolute(), jax.process_index() == 0
    replacing: Any = {"overwrite": overwrite, "ours": _is_model}
    # Every process checks for itself, so that all of them refuse.
    files.check_vacant(target, **replacing)
    barrier("model folder: target inspected")
    with contextlib.ExitStack() as stack:
        temporary = files.temporary_name(target)
        if first:
            temporary = stack.enter_context(files.new_folder(target, **replacing))
        name = from_first(temporary.name, len(temporary.name))
        writer = ModelWriter(target.with_name(name), target)
        yield writer
        barrier("model folder: filled")
        if first:
            writer.check_complete()
    barrier("model folder: in place")


def save_model(
    path: str | os.PathLike[str],
    config: MusicGenConfig,
    params: Mapping[str, Params],
    *,
    tokenizer: str | os.PathLike[str] | bytes,
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
    """The content of `config.json`."""

    config: MusicGenConfig | None  # None: the folder holds only some components
    parts: dict[str, ComponentConfig]  # config by component
    source: dict[str, Any]
    components: dict[str, dict]  # storage, files, bytes by component


def load_info(path: str | os.PathLike[str]) -> ModelInfo:
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
    document = files.read_json(file)
    if "format_version" not in document:
        raise UserError(f"{file} has no format_version: convert the model with musicgen-jax first")
    if document["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{file} has format version {document['format_version']!r}, but this musicgen-jax "
            f"reads {FORMAT_VERSION}: convert the model again or use another release"
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
        if entry.get("of") not in (None, hub.BUNDLED):
            raise UserError(f"{file}: components.{name}.of must be {hub.BUNDLED!r} or absent")
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


def component_folder(path: str | os.PathLike[str], name: str, info: ModelInfo) -> Path:
    """The folder of a component of the model folder `path`, which may be one of nano's."""
    of = info.components[name].get("of")
    return (Path(path).absolute() if of is None else hub.find_model(of)) / name


def load_config(path: str | os.PathLike[str]) -> MusicGenConfig:
    """The architecture of the whole model in the folder `path`.

    Raises:
      UserError: as `load_info`, or the folder holds only some of the components.
    """
    info = load_info(path)
    if info.config is None:
        raise UserError(f"{path} holds only {', '.join(info.parts)}, not a whole MusicGen model")
    return info.config


def load_params(
    path: str | os.PathLike[str],
    component: str,
    abstract: Params,
    *,
    keep_dtypes: bool = False,
    partial: bool = False,
) -> Params:
    """Reads one component straight into the dtypes and shardings of an abstract tree.

    Args:
      path: the model folder.
      component: "t5", "mert", "lm", "encodec" or "separator".
      abstract: nested dicts of `jax.ShapeDtypeStruct`, as `nnx.eval_shape` gives them. Leaves
        without a sharding go to the default device. Stored values are cast to the leaf's dtype.
        A matrix may be {"int8": [..., O, I], "scale": [..., O, 1]} instead: "int8" storage gives it
        as it is, "plain" storage is rounded on the way.
      keep_dtypes: the leaves keep the dtypes that they are stored in (float32 for "int8").
      partial: leaves whose top-level name is not in `abstract` are not read; otherwise they are an
        error.

    Returns:
      The same nested dicts, of `jax.Array`.

    Raises:
      UserError: the component is missing, damaged or unreadable, has a weight that is NaN or
        infinite, or its leaves are not the abstract tree's; the message names them.
    """
    info = load_info(path)
    if component not in info.components:
        raise UserError(f"{path} has no component {component!r}, only {', '.join(info.parts)}")
    folder = component_folder(path, component, info)
    entry = info.components[component]
    with _reading(folder):
        if _files_and_bytes(folder) != (entry["files"], entry["bytes"]):
            raise ValueError("files are missing or truncated")
        stored = arrays.stored_shapes(folder)
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {tuple(str(key.key) for key in keys): leaf for keys, leaf in leaves}
    if partial:
        stored = {key: leaf for key, leaf in stored.items() if key[0] in abstract}
    _check_leaves(folder, int8_storage.shapes(wanted), int8_storage.shapes(stored))

    int8 = entry["storage"] == "int8"
    default = jnp.zeros(()).sharding
    wanted = {
        key: jax.ShapeDtypeStruct(
            leaf.shape,
            stored[key].dtype if keep_dtypes and not int8 else leaf.dtype,
            sharding=leaf.sharding or default,
        )
        for key, leaf in wanted.items()
    }
    direct = wanted.keys() <= stored.keys() and not int8
    placed: dict[LeafPath, jax.Array] = {}
    with memory.mapped():
        for part in arrays.parts(stored):
            with _reading(folder):
                if direct:
                    loaded = arrays.load(folder, {key: wanted[key] for key in part})
                else:
                    loaded = _load_through_host(component, folder, wanted, stored, part)
            arrays.check_finite(loaded, f"{folder} is damaged")
            placed |= loaded
            del loaded
            memory.give_back()
    return jax.tree.unflatten(structure, [placed[key] for key in wanted])


def _load_through_host(
    component: str, folder: Path, wanted: Mapping, stored: Mapping, part: list[LeafPath]
) -> dict[LeafPath, jax.Array]:
    """The wanted leaves of a part: read on the host, scaled or rounded, then placed."""
    host = {key: np.empty(stored[key].shape, stored[key].dtype) for key in part}
    loaded = arrays.load(folder, host)
    for key in wanted:
        if key[-1] == "int8" and key[:-1] in loaded:
            quantized = int8_storage.quantize(component, key[:-1], loaded[key[:-1]])
            loaded |= {(*key[:-1], name): leaf for name, leaf in quantized.items()}
    return {
        key: place(int8_storage.dequantize(loaded, key, leaf), leaf.sharding)
        for key, leaf in wanted.items()
        if key in loaded or (*key, "int8") in loaded
    }


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turns Orbax's errors, which are of many kinds, into one line."""
    try:
        yield
    except Exception as error:
        if fault := machine_fault(error):
            raise UserError(f"cannot read {folder}: {fault}") from error
        raise UserError(
            f"{folder} is damaged or incomplete: download or convert the model again"
        ) from error


_WINDOWS = ("thumbs.db", "ehthumbs.db", "desktop.ini")


def _files_and_bytes(folder: Path) -> tuple[int, int]:
    """Counts regular files. Hidden ones, and Windows' own, are not ours."""
    found = [
        file
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".") and file.name.lower() not in _WINDOWS
    ]
    return len(found), sum(f.stat().st_size for f in found)


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
