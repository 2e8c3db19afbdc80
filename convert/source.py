"""Finds the components in a source: a folder, a file or a Hub repository."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from musicgen_jax.convert import bpe, clap, encodec, htdemucs, mert, passt, vggish
from musicgen_jax.convert.files import (
    read_json,
    read_metadata,
    read_weights,
    refuse_pointer,
    refuse_tensorflow,
    state_dict,
)
from musicgen_jax.convert.settings import TRAINING_NAMES, Part, read_config, read_xp_cfg
from musicgen_jax.convert.tensors import StateDict
from musicgen_jax.convert.torch_zip import is_torch, read_torch
from musicgen_jax.convert.wrappers import strip_wrappers
from musicgen_jax.errors import UserError

TOKENIZER = "spiece.model"
LM_FILE, CODEC_FILE = "state_dict.bin", "compression_state_dict.bin"  # audiocraft's
RUN_FILE = "checkpoint.th"  # of audiocraft's trainer
# transformers' files, best first: pickles only if there is no other file.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HUB_CODEC, HUB_T5 = "facebook/encodec_32khz", "google-t5/t5-base"
HUB_MERT = "m-a-p/MERT-v1-95M"
_NAMES = {
    "t5": "T5",
    "mert": "MERT",
    "lm": "MusicGen",
    "encodec": "EnCodec",
    "separator": "HTDemucs",
    "vggish": "VGGish",
    "passt": "PaSST",
    "clap": "CLAP",
}
_MERGE = "this is an adapter of PEFT: merge it into its model (merge_and_unload) and save that"
_SHARDS = {
    "model.safetensors.index.json": "model-*-of-*.safetensors",
    "pytorch_model.bin.index.json": "pytorch_model-*-of-*.bin",
}


@dataclasses.dataclass
class Source:
    """The components found in one place.

    Attributes:
      name: the name that the user passed: a repository, or the name of a folder or file.
      folder: folder of the files; other components can be next to it.
      parts: parts by component: "t5", "mert", "lm", "encodec", "separator", "vggish",
        "passt", "clap".
      tokenizer: sentencepiece model of T5.
      codec_name: the codec that an audiocraft file refers to if it does not contain one.
      t5_name: the T5 with which an audiocraft model was trained.
      revision: the commit, if the source comes from the Hub.
      notes: notes for the user on how the files were read, one line each.
    """

    name: str
    folder: Path
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)
    tokenizer: Path | None = None
    codec_name: str | None = None
    t5_name: str | None = None
    revision: str | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


def open_source(place: str, revision: str | None = None) -> Source:
    """Opens a folder, a file or a Hub repository and sorts its tensors by their names.

    Every file gives a component, and every tensor belongs to a component. Files and tensors without
    a use are refused here or reported by the component's table.

    Args:
      place: a folder, a weight file or a repository of the Hugging Face Hub.
      revision: revision of the Hub repository.

    Raises:
      UserError: the source does not exist, or contains a file that cannot be converted.
    """
    path, commit = Path(place), None
    if path.exists():
        if revision is not None:
            raise UserError(f"{place} is on this machine: a revision is for Hub repositories")
        folder = path if path.is_dir() else path.parent
        source = Source(path.absolute().name, folder.absolute())
    else:
        path, commit = download(place, revision)
        source = Source(place, path, revision=commit)
    if path.is_file():
        _read(source, source.folder / path.name)
    else:
        _read_folder(source)
    if (source.folder / TOKENIZER).is_file():
        refuse_pointer(source.folder / TOKENIZER)
        source.tokenizer = source.folder / TOKENIZER
    if not source.parts and not source.codec_name:
        raise UserError(f"{place} holds no weights{_what_instead(source.folder)}")
    return source


def _read_folder(source: Source) -> None:
    """Reads transformers' file, then audiocraft's if the language model is still missing."""
    used, unused = [], []
    for names in _weight_files(source.folder):
        audiocrafts = names[0] in (LM_FILE, CODEC_FILE, RUN_FILE)
        if used and ("lm" in source.parts or not audiocrafts):
            unused += names
            continue
        for name in names:
            _read(source, source.folder / name)
        used += names
    if unused:
        source.notes.append(f"read {', '.join(used)}, not {', '.join(unused)}")


def _weight_files(folder: Path) -> list[list[str]]:
    """Groups of files that belong together, preferred groups first."""
    names = {file.name for file in folder.iterdir() if file.is_file()}
    groups = [[name] for name in WEIGHT_FILES if name in names]
    groups.append([name for name in (LM_FILE, CODEC_FILE) if name in names])
    groups.append([RUN_FILE] if RUN_FILE in names else [])
    groups.append(sorted(name for name in names if htdemucs.FILE.fullmatch(name)))
    return [group for group in groups if group]


def _what_instead(folder: Path) -> str:
    """The end of the message about a folder without weights, with a hint for the user."""
    names = sorted(entry.name for entry in folder.iterdir())
    if any(name.startswith("adapter_") for name in names):
        return f": {_MERGE}"
    for name in names:
        if (folder / name).is_dir() and _weight_files(folder / name):
            return f", but its folder {name} does: convert that one"
    return f": expected {' or '.join((LM_FILE, CODEC_FILE, *WEIGHT_FILES))}"


def _read(source: Source, path: Path) -> None:
    refuse_pointer(path)
    refuse_tensorflow(path)
    if path.name.endswith(".json") or not is_torch(path):
        # Safetensors, an index, or a file that `read_weights` will refuse with a reason.
        tensors, settings = read_weights(path), None
        if path.suffix == ".safetensors":
            settings = htdemucs.settings_of_metadata(read_metadata(path), str(path))
        if settings is not None:
            part = Part(htdemucs.FAMILY, tensors, settings, str(path))
            return _add_part(source, "separator", part)
        return _read_tensors(source, path, tensors)
    value = read_torch(path, inert=TRAINING_NAMES | htdemucs.NAMES | clap.NAMES)
    if isinstance(value, dict) and type(value.get("pretrained")) is str:
        source.codec_name = value["pretrained"]
    elif isinstance(value, dict) and value.keys() & {"best_state", "fsdp_best_state", "ema"}:
        _read_audiocraft(source, path, value)
    elif isinstance(value, dict) and "klass" in value:
        tensors = state_dict(value.get("state"), path)
        settings = htdemucs.settings_of_package(value, str(path))
        _add_part(source, "separator", Part(htdemucs.FAMILY, tensors, settings, str(path)))
    elif isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        # Of LAION's trainer; the optimizer's state is next to it, and stays unread.
        _read_tensors(source, path, state_dict(clap.without_patch(value["state_dict"]), path))
    else:
        _read_tensors(source, path, state_dict(value, path))


def _add_part(source: Source, component: str, part: Part) -> None:
    if component in source.parts:
        files = f"{source.parts[component].origin} and {part.origin}"
        raise UserError(f"several models of {_NAMES[component]}, {files}: name one of the files")
    source.parts[component] = part


def _unwrapped(source: Source, path: Path, tensors: StateDict) -> StateDict:
    tensors, prefixes = strip_wrappers(tensors, str(path))
    if prefixes:
        source.notes.append(f"{path.name}: removed {', '.join(prefixes)} from the keys")
    return tensors


def _read_audiocraft(source: Source, path: Path, value: dict) -> None:
    tensors = _unwrapped(source, path, state_dict(_best_state(value, path), path))
    settings = _settings(value.get("xp.cfg", ""), path)
    component = _component_of_audiocraft(tensors)
    if component is None:
        raise _unknown(path, tensors)
    _add_part(source, component, Part("audiocraft", tensors, settings, str(path)))
    if component == "lm":
        name = settings.get("conditioners.description.t5.name")
        source.t5_name = name if isinstance(name, str) else None
        if "exported" not in value and "optimizer" in value:  # a run's own file names its codec
            codec = settings.get("compression_model_checkpoint", f"//pretrained/{HUB_CODEC}")
            source.codec_name = str(codec).removeprefix("//pretrained/")


def _component_of_audiocraft(tensors: StateDict) -> str | None:
    if any(key.startswith(("transformer.layers.", "emb.")) for key in tensors):
        return "lm"
    known = ("encoder.model.", "decoder.model.", "quantizer.vq.")
    return "encodec" if any(key.startswith(known) for key in tensors) else None


def _unknown(path: Path, tensors: StateDict) -> UserError:
    if any(".lora_A." in key for key in tensors):
        return UserError(f"{path} holds no whole model: {_MERGE}")
    names = ", ".join(list(tensors)[:3])
    more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
    *known, last = _NAMES.values()
    return UserError(f"{path} holds no {', '.join(known)} or {last} weights, but {names}{more}")


def _best_state(value: dict, path: Path) -> object:
    """The state dict that audiocraft itself would export: the best one of the run.

    If the run had a moving average of the weights, the best state was measured and saved with it.
    So the average of the last epoch (`ema`) and the last weights (`model`) are not used. audiocraft
    exports `ema` only from files that are older than the best state (utils/export_legacy.py). A run
    with FSDP stores the whole model in `fsdp_best_state`; its `best_state` is the part of one
    process.
    """
    average = value.get("ema")
    candidates = (
        value.get("fsdp_best_state"),
        value.get("best_state"),
        average.get("state") if isinstance(average, dict) else None,
    )
    if re.search(r"\.th\.\d+$", path.name):
        raise UserError(f"{path} is one process's part of a model: checkpoint.th has the whole")
    state = next((state for state in candidates if isinstance(state, dict) and state), None)
    if state is None:
        raise UserError(f"{path} does not hold a dict of tensors as best_state")
    return state.get("model", state)  # only a run's file wraps the state in "model"


def _settings(value: object, path: Path) -> dict[str, str | list[str]]:
    """Reads `xp.cfg`: YAML in an exported file, an omegaconf object in a run's own file."""
    try:
        return read_xp_cfg(value) if isinstance(value, str) else read_config(value)
    except ValueError as error:
        raise UserError(f"{path} is refused: {error}") from None


def _read_tensors(source: Source, path: Path, tensors: StateDict) -> None:
    """Reads tensors without a package around them, as transformers writes them."""
    tensors = _unwrapped(source, path, tensors)
    config_file = path.parent / "config.json"
    config = read_json(config_file) if config_file.is_file() else {}

    def part(component: str, key: str = "", prefix: str = "") -> None:
        settings = config.get(key, {}) if whole else config
        if not isinstance(settings, dict):
            raise UserError(f"{config_file}: {key} must be an object")
        if settings and component == "encodec":
            settings = encodec.TRANSFORMERS_DEFAULTS | settings
        if settings and component == "lm":
            settings = {"num_attention_heads": 16} | settings
            # The first uploads say 16 for every size, but the weights have heads of size 64.
            width = settings.get("hidden_size")
            if settings["num_attention_heads"] == 16 and width in (1536, 2048):
                settings["num_attention_heads"] = width // 64
            # The settings of the melody and of the window are one level up.
            own = ("chroma_length", "segment_duration")
            settings |= {name: config[name] for name in own if name in config}
        found = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        _add_part(source, component, Part("transformers", found, settings, str(path)))

    whole = any(key.startswith("decoder.model.decoder.") for key in tensors)
    if whole:
        part("t5", "text_encoder", "text_encoder.")
        part("encodec", "audio_encoder", "audio_encoder.")
        # All other tensors belong to the language model, or its table reports them.
        others = ("text_encoder.", "audio_encoder.")
        tensors = {key: t for key, t in tensors.items() if not key.startswith(others)}
        part("lm", "decoder")
    elif any(key.startswith("encoder.block.") for key in tensors):
        part("t5")
    elif mert.KEY in tensors:
        part("mert")
    elif vggish.is_vggish(tensors):
        part("vggish")
    elif passt.KEY in tensors:
        part("passt")
    elif (found := clap.part_of(tensors, path)) is not None:
        _add_part(source, "clap", found)
    elif any(re.match(r"quantizer\.(vq\.)?layers\.", key) for key in tensors):
        part("encodec")
    elif _component_of_audiocraft(tensors) == "lm":
        source.notes.append(f"{path.name}: no settings; assuming those of the official models")
        _add_part(source, "lm", Part("audiocraft", tensors, {}, str(path)))
    else:
        raise _unknown(path, tensors)


# --- The Hub -----------------------------------------------------------------------------------


def download(
    repo: str, revision: str | None = None, files: Callable[[set[str]], list[str]] | None = None
) -> tuple[Path, str | None]:
    """Downloads some files of a repository into the Hub's cache.

    Args:
      repo: its name.
      revision: branch, tag or commit.
      files: chooses among the names of all files; default: the convertible ones. It prefers
        audiocraft's pair of files if there is one. It has half the size, and its codec has full
        precision, which transformers' file of the stereo models rounds.

    Returns:
      The folder and the commit.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo) or ".." in repo:
        raise UserError(f"not a file, a folder, or the name of a Hub repository: {repo}")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{repo} is not a local folder; to download it from the Hugging Face Hub: "
            'pip install "musicgen-jax[hub]"'
        ) from None
    try:
        info = huggingface_hub.HfApi().model_info(repo, revision=revision)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        folder = huggingface_hub.snapshot_download(
            repo, revision=info.sha, allow_patterns=(files or files_to_download)(names)
        )
    except Exception as error:  # the Hub's own exceptions, the network's and the file system's
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"could not download {repo} from the Hugging Face Hub: {reason}") from None
    return Path(folder), info.sha


def files_to_download(names: set[str]) -> list[str]:
    """The needed files of a repository, as patterns without folders."""
    if LM_FILE in names:
        return [LM_FILE, CODEC_FILE]
    for weights in WEIGHT_FILES:
        if weights in names:
            shards = [_SHARDS[weights]] if weights in _SHARDS else []
            return ["config.json", TOKENIZER, *clap.SETTINGS_FILES, *bpe.FILES, weights, *shards]
    if demucs := [name for name in sorted(names) if htdemucs.FILE.fullmatch(name)]:
        return demucs
    return [LM_FILE, *WEIGHT_FILES]  # none of these exist; `open_source` will report it
