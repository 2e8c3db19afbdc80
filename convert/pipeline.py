"""The whole conversion: finds the components, derives configs, converts and writes."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from musicgen_jax.conditioning.chroma import frame_count
from musicgen_jax.config import MusicGenConfig
from musicgen_jax.convert import (
    bpe,
    clap,
    clap_gate,
    encodec,
    htdemucs,
    lm,
    mert,
    passt,
    t5,
    vggish,
)
from musicgen_jax.convert.rules import IncompleteError, Table, apply_table
from musicgen_jax.convert.settings import Part
from musicgen_jax.convert.source import (
    HUB_CODEC,
    HUB_MERT,
    HUB_T5,
    Source,
    download,
    open_source,
)
from musicgen_jax.convert.tensors import LazyTensor
from musicgen_jax.errors import UserError
from musicgen_jax.metrics.clap import ClapNetwork
from musicgen_jax.metrics.clap_tokenizer import MERGES, VOCABULARY
from musicgen_jax.metrics.clap_tokenizer import SOURCE as HUB_BPE
from musicgen_jax.metrics.passt import PasstNetwork
from musicgen_jax.metrics.vggish import VggishNetwork
from musicgen_jax.nn.encodec.model import Encodec
from musicgen_jax.nn.htdemucs.model import HTDemucs
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.mert import Mert
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.checkpoint import ComponentConfig

MODULES = {
    "t5": T5Encoder,
    "mert": Mert,
    "lm": LM,
    "encodec": Encodec,
    "separator": HTDemucs,
    "vggish": VggishNetwork,
    "passt": PasstNetwork,
    "clap": ClapNetwork,
}

LICENSE = """\
These weights were converted by musicgen-jax; converting does not change their licence.

The MusicGen and EnCodec weights that Meta published (facebook/musicgen-*, facebook/encodec_32khz)
are released under the Creative Commons Attribution-NonCommercial 4.0 International licence,
CC-BY-NC 4.0: https://creativecommons.org/licenses/by-nc/4.0/legalcode

The T5 weights that Google published (t5-base) are released under the Apache License 2.0:
https://www.apache.org/licenses/LICENSE-2.0

The MERT weights that the Multimodal Art Projection published (m-a-p/MERT-v1-95M; in the folder
`mert` of a style model, other models have none) are released under CC-BY-NC 4.0 as well.

The Demucs weights that Meta published (htdemucs; in a folder `separator`) came with the code of
Demucs, which is under the MIT licence: https://github.com/adefossez/demucs/blob/main/LICENSE

The VGGish weights that Google published (in a folder `vggish`) came with code under the Apache
License 2.0; torchvggish, which holds them for PyTorch, is under the same licence.

The PaSST weights (in a folder `passt`) were released by the authors of PaSST next to code under the
Apache License 2.0: https://github.com/kkoutini/PaSST

The CLAP weights that LAION published (in a folder `clap`; lukewys/laion_clap) are under CC0 1.0,
https://creativecommons.org/publicdomain/zero/1.0/, and RoBERTa's tokenizer (vocab.json, merges.txt)
is under the MIT licence.

Weights from anyone else are under the licence that their authors chose. `config.json` says where
these came from.
"""


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    t5_from: str | None = None,
    encodec_from: str | None = None,
    mert_from: str | None = None,
    tokenizer_from: str | None = None,
    revision: str | None = None,
    name: str | None = None,
    storage: str = "plain",
    overwrite: bool = False,
    log: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MusicGenConfig | dict[str, ComponentConfig]:
    """Converts a model and writes it as a folder that `musicgen_jax.storage.checkpoint` reads.

    Weights keep their stored precision (weight norm is folded in float32). Components are read and
    written one after another, so memory holds only the largest component, not the whole model.

    Args:
      source: a folder, a weight file, or a Hugging Face Hub repository. A folder with only one
        component gives a folder with only that component.
      out: the folder to write.
      t5_from: source of T5 and its tokenizer, which audiocraft's files do not contain (default: a
        folder `t5-base` in or next to the source, then the Hub).
      encodec_from: source of the codec; the default is found in the same way.
      mert_from: source of MERT, for a style model (default: a folder `MERT-v1-95M` in or next to
        the source, then the Hub).
      tokenizer_from: folder or Hub repository of RoBERTa's tokenizer, for CLAP (default: the
        source, a folder `roberta-base` in or next to it, then the Hub).
      revision: branch, tag or commit of the Hub repository.
      name: name of the model (default: the source's name).
      storage: "plain" or "int8", see `checkpoint.ModelWriter.write_component`.
      overwrite: whether to replace an existing model at `out`.
      log: called with one line about each step.
      progress: called with (bytes done, bytes in all) of the source's tensors; half of a
        component is done when it is read, all of it when it is written.

    Returns:
      The model's config, or {component: config} if the source is only a part of a model.

    Raises:
      UserError: a file is missing, damaged, refused, or does not fit the architecture.
    """
    found = find_parts(
        str(source),
        t5_from=t5_from,
        encodec_from=encodec_from,
        mert_from=mert_from,
        tokenizer_from=tokenizer_from,
        revision=revision,
        log=log,
    )
    with _way_out(found.parts):
        configs, parts = derive_configs(found.parts)
    config = whole_config(configs, parts, name or found.name)
    sizes = {component: _bytes(part) for component, part in parts.items()}
    total = sum(sizes.values())
    with checkpoint.writing_model(out, overwrite=overwrite) as writer:
        before = 0
        for component in parts:
            log(f"{component}: {_size(parts[component])}, from {found.origins[component]}")

            def read(size: int, before: int = before) -> None:
                progress(before + size // 2, total)

            with _way_out(found.parts):
                part = _watched(parts[component], read)
                tree = convert_part(component, part, configs[component])
            if component == "clap":
                clap_gate.check(tree, configs[component], found.bpe, parts[component].origin)
            writer.write_component(component, tree, storage=storage)
            del tree  # free it before reading the next one
            before += sizes[component]
            progress(before, total)
        for file, data in found.bpe.items():
            writer.write_file(file, data)
        called = found.name if config else name or found.name  # a model has its name in its config
        writer.finish(
            config or configs,
            tokenizer=found.tokenizer,
            license=LICENSE,
            source={"name": called, "revision": found.revision, "components": found.origins},
        )
    return config or configs


@dataclasses.dataclass(frozen=True)
class Found:
    """The components found for a source.

    Attributes:
      name: name of the source.
      revision: commit of the source, if it comes from the Hub.
      parts: parts by component, in the order of the pipeline.
      tokenizer: sentencepiece model; None without T5.
      bpe: content of vocab.json and merges.txt; empty without CLAP.
      origins: name of the place from which each component comes.
    """

    name: str
    revision: str | None
    parts: dict[str, Part]
    tokenizer: Path | None
    bpe: dict[str, bytes]
    origins: dict[str, str]


def find_parts(
    source: str,
    *,
    t5_from: str | None = None,
    encodec_from: str | None = None,
    mert_from: str | None = None,
    tokenizer_from: str | None = None,
    revision: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Found:
    """Gathers the components from the source, from folders next to it and from the Hub.

    The arguments are those of `convert`.
    """
    main = open_source(source, revision)
    _log_notes(main, log)
    parts, tokenizer = dict(main.parts), main.tokenizer
    origins = dict.fromkeys(parts, main.name)
    needs_all = "lm" in parts
    wanted = {
        "t5": (t5_from, main.t5_name or "t5-base", HUB_T5),
        "encodec": (encodec_from, main.codec_name or HUB_CODEC, HUB_CODEC),
    }
    if needs_all and lm.needs_mert(parts["lm"]):
        wanted["mert"] = (mert_from, HUB_MERT, HUB_MERT)
    elif mert_from is not None:
        raise UserError(f"{source} is not a style model: leave out --mert {mert_from}")
    for component, (given, named, hub) in wanted.items():
        pointed = component == "encodec" and main.codec_name is not None
        if given is None and (component in parts or not (needs_all or pointed)):
            continue
        place = given or _beside(main.folder, named.split("/")[-1])
        if place is None:
            if named not in (hub, hub.split("/")[-1]):
                raise UserError(
                    f"{source} needs {named}, which is not next to it: give --{component} PATH"
                )
            place = hub
            log(f"{component}: not in {main.name}, taken from the Hub: {hub}")
        try:
            other = open_source(place)
        except UserError as error:
            if given is not None:
                raise
            raise UserError(
                f"{source} holds no {component}: give --{component} PATH ({error})"
            ) from None
        _log_notes(other, log)
        if component not in other.parts:
            raise UserError(f"{place} holds no {component}, only {', '.join(other.parts)}")
        parts[component], origins[component] = other.parts[component], other.name
        if component == "t5":
            tokenizer = other.tokenizer
    if "t5" in parts and tokenizer is None:
        raise UserError(
            f"spiece.model, T5's tokenizer, is not next to {parts['t5'].origin} (tokenizer.json, "
            f"which newer versions of transformers write, is not enough): copy it there from "
            f"{HUB_T5}"
        )
    for component, part in parts.items():
        if names := part.unknown(component):
            log(f"{component}: unknown settings, not used: {', '.join(names)[:300]}")
    if "clap" in parts:
        pieces = _find_bpe(main, tokenizer_from, log)
    elif tokenizer_from is not None:
        raise UserError(f"{source} is not a CLAP: leave out --tokenizer {tokenizer_from}")
    else:
        pieces = {}
    order = [component for component in checkpoint.COMPONENTS if component in parts]
    return Found(
        main.name,
        main.revision,
        {component: parts[component] for component in order},
        tokenizer,
        pieces,
        {component: origins[component] for component in order},
    )


def derive_configs(
    parts: Mapping[str, Part],
) -> tuple[dict[str, ComponentConfig], dict[str, Part]]:
    """The config of each component, and the parts after fitting them to each other."""
    parts, configs = dict(parts), {}
    if "lm" in parts:
        parts["lm"] = _with_projection(parts["lm"], parts["t5"])
        configs["lm"] = lm.derive_config(parts["lm"])
    if "t5" in parts:
        configs["t5"] = t5.derive_config(parts["t5"])
    if "mert" in parts:
        configs["mert"] = mert.derive_config(parts["mert"])
    if "separator" in parts:
        configs["separator"] = htdemucs.derive_config(parts["separator"])
    if "vggish" in parts:
        configs["vggish"] = vggish.derive_config(parts["vggish"])
    if "passt" in parts:
        configs["passt"] = passt.derive_config(parts["passt"])
    if "clap" in parts:
        configs["clap"] = clap.derive_config(parts["clap"])
    if "encodec" in parts:
        codec = encodec.derive_config(parts["encodec"])
        if "lm" in configs:
            books = configs["lm"].n_q
            for conditioner in ("chroma_stem", "style"):
                rate = f"conditioners.self_wav.{conditioner}.sample_rate"
                parts["lm"].require(rate, codec.sample_rate)
            if configs["lm"].chroma_bins:
                samples = int(lm.max_duration(parts["lm"]) * codec.sample_rate)
                parts["lm"].require("chroma_length", frame_count(samples))
            # Stereo interleaves the codes of two runs of one mono codec.
            books //= lm.audio_channels(parts["lm"], configs["lm"].delays)
            codec = encodec.derive_config(parts["encodec"], books)
            parts["encodec"] = encodec.without_unused_books(parts["encodec"], books)
        configs["encodec"] = codec
    return configs, parts


def whole_config(
    configs: Mapping[str, ComponentConfig], parts: Mapping[str, Part], name: str
) -> MusicGenConfig | None:
    """The model's config; None if the parts are not a whole model."""
    if "lm" not in configs:
        return None
    try:
        return MusicGenConfig(
            **configs,  # type: ignore[arg-type]
            audio_channels=lm.audio_channels(parts["lm"], configs["lm"].delays),  # type: ignore
            max_duration=lm.max_duration(parts["lm"]),
            name=name,
        )
    except ValueError as error:
        raise UserError(f"the components of {name} do not fit each other: {error}") from None


def convert_part(component: str, part: Part, config: ComponentConfig) -> dict:
    """One component as nested dicts of numpy arrays."""
    return apply_table(
        _table(component, part, config),
        part.tensors,
        abstract_params(component, config),
        part.origin,
    )


def abstract_params(component: str, config: ComponentConfig) -> dict:
    """The parameter tree of a component as `jax.ShapeDtypeStruct`s; allocates nothing."""
    module = module_shapes(MODULES[component], config)
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def _table(component: str, part: Part, config: Any) -> Table:
    if component == "lm":
        return lm.table(part)
    if component == "mert":
        return mert.TABLE
    if component == "separator":
        return htdemucs.TABLE
    if component == "vggish":
        return vggish.TABLE
    if component == "passt":
        return passt.TABLE
    if component == "clap":
        return clap.TABLES[part.family]
    return t5.table(part) if component == "t5" else encodec.table(config)


@contextlib.contextmanager
def _way_out(parts: Mapping[str, Part]) -> Iterator[None]:
    """Adds the most likely cause to a report of missing tensors."""
    try:
        yield
    except IncompleteError as error:
        if "lm" not in parts or not lm.is_melody_of_transformers(parts["lm"]):
            raise
        raise UserError(
            f"{error}\nthe first uploads of the melody models to the Hub lacked tensors: fetch a "
            "newer revision (--revision main), or convert audiocraft's state_dict.bin"
        ) from None


def _log_notes(source: Source, log: Callable[[str], None]) -> None:
    for note in source.notes:
        log(f"{source.name}: {note}")


def _find_bpe(main: Source, given: str | None, log: Callable[[str], None]) -> dict[str, bytes]:
    """The files of RoBERTa's tokenizer: those that were named, those near the source, the Hub's."""
    name = HUB_BPE.split("/")[-1]
    near = [main.folder, main.folder / name, main.folder.parent / name]
    for folder in [Path(given)] if given else near:
        if folder.is_dir() and (found := bpe.read_bpe(folder)):
            return found
    if given and Path(given).exists():
        raise UserError(f"{given} is not a folder with {VOCABULARY} and {MERGES}")
    repo = given or HUB_BPE
    log(f"tokenizer: not in {main.name}, taken from the Hub: {repo}")
    try:
        folder, _ = download(repo, files=lambda names: [n for n in bpe.FILES if n in names])
        if found := bpe.read_bpe(folder):
            return found
        raise UserError(f"{repo} has no {VOCABULARY} and {MERGES}")
    except UserError as error:
        raise UserError(
            f"{main.name} holds no tokenizer: give --tokenizer FOLDER with {VOCABULARY} and "
            f"{MERGES} of {HUB_BPE} ({error})"
        ) from None


def _beside(folder: Path, name: str) -> str | None:
    """A folder of that name in the source's folder or next to it."""
    for place in (folder / name, folder.parent / name):
        if place.is_dir():
            return str(place)
    return None


def _with_projection(part: Part, text: Part) -> Part:
    """Adds an identity projection of the text: transformers omits it if the widths are equal."""
    weight, bias = "enc_to_dec_proj.weight", "enc_to_dec_proj.bias"
    norm = part.tensors.get("decoder.model.decoder.layer_norm.weight")
    table = text.tensors.get("shared.weight", text.tensors.get("encoder.embed_tokens.weight"))
    if part.family != "transformers" or weight in part.tensors or bias in part.tensors:
        return part
    if norm is None or table is None or norm.shape != table.shape[1:]:
        return part  # the engine or derive_config reports the missing tensors
    (width,) = norm.shape
    dtype = np.dtype(norm.dtype)
    added = {
        weight: LazyTensor((width, width), dtype, lambda: np.eye(width, dtype=dtype)),
        bias: LazyTensor((width,), dtype, lambda: np.zeros(width, dtype)),
    }
    return part._replace(tensors=part.tensors | added)


def _bytes(part: Part) -> int:
    """The bytes of all tensors, including those that are not converted."""
    return sum(math.prod(each.shape) * each.dtype.itemsize for each in part.tensors.values())


def _watched(part: Part, read: Callable[[int], None]) -> Part:
    """The same part; calls `read` with the bytes so far whenever a tensor has been read."""
    so_far = 0

    def watched(tensor: LazyTensor) -> LazyTensor:
        def values() -> np.ndarray:
            nonlocal so_far
            made = tensor.read()
            so_far += made.nbytes
            read(so_far)
            return made

        return tensor._replace(read=values)

    return part._replace(tensors={key: watched(each) for key, each in part.tensors.items()})


def _size(part: Part) -> str:
    numbers = sum(math.prod(tensor.shape) for tensor in part.tensors.values())
    dtypes = {tensor.dtype.name for tensor in part.tensors.values()}
    return f"{numbers / 1e6:.1f} M numbers, {' and '.join(sorted(dtypes))}"
