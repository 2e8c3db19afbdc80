"""Finds the components in a source: a folder, a file or a repository of the Hub."""

import dataclasses
import re
from pathlib import Path

from musicgen_jax.convert import encodec, htdemucs, mert
from musicgen_jax.convert.files import read_json, read_metadata, read_weights, state_dict
from musicgen_jax.convert.settings import TRAINING_NAMES, Part, read_config, read_xp_cfg
from musicgen_jax.convert.tensors import StateDict
from musicgen_jax.convert.torch_zip import is_zip, read_torch
from musicgen_jax.errors import UserError

TOKENIZER = "spiece.model"
LM_FILE, CODEC_FILE = "state_dict.bin", "compression_state_dict.bin"  # audiocraft's
RUN_FILE = "checkpoint.th"  # of audiocraft's trainer
# transformers', best first: no pickles where there is a choice.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HUB_CODEC, HUB_T5 = "facebook/encodec_32khz", "google-t5/t5-base"
HUB_MERT = "m-a-p/MERT-v1-95M"
_SHARDS = {
    "model.safetensors.index.json": "model-*-of-*.safetensors",
    "pytorch_model.bin.index.json": "pytorch_model-*-of-*.bin",
}


@dataclasses.dataclass
class Source:
    """What was found in one place.

    Attributes:
      name: as the user gave it, a repository or the name of a folder or file.
      folder: where its files are; other components may lie beside it.
      parts: by component: "t5", "mert", "lm", "encodec", "separator".
      tokenizer: sentencepiece model of T5.
      codec_name: the codec that an audiocraft file points at in place of holding one.
      t5_name: the T5 that an audiocraft model was trained with.
      revision: the commit, from the Hub.
    """

    name: str
    folder: Path
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)
    tokenizer: Path | None = None
    codec_name: str | None = None
    t5_name: str | None = None
    revision: str | None = None


def open_source(place: str, revision: str | None = None) -> Source:
    """Opens a folder, a file or a Hub repository and looks at the names of its tensors.

    Raises:
      UserError: there is nothing of that name, or nothing in it that can be converted.
    """
    path, commit = Path(place), None
    if not path.exists():
        path, commit = download(place, revision)
        source = Source(place, path, revision=commit)
    else:
        folder = path if path.is_dir() else path.parent
        source = Source(path.absolute().name, folder.absolute())
    names = [path.name] if path.is_file() else _weight_files(source.folder)
    for name in names:
        _read(source, source.folder / name)
    if (source.folder / TOKENIZER).is_file():
        source.tokenizer = source.folder / TOKENIZER
    if not source.parts and not source.codec_name:
        raise UserError(
            f"{place} holds no MusicGen, EnCodec, T5, MERT or HTDemucs weights: expected "
            f"{' or '.join((LM_FILE, CODEC_FILE, *WEIGHT_FILES))}"
        )
    return source


def _weight_files(folder: Path) -> list[str]:
    """Those to read: transformers' file holds everything, audiocraft's two hold all but T5."""
    whole = [name for name in WEIGHT_FILES if (folder / name).is_file()]
    pair = [name for name in (LM_FILE, CODEC_FILE) if (folder / name).is_file()]
    run = [RUN_FILE] if (folder / RUN_FILE).is_file() else []
    demucs = sorted(file.name for file in folder.iterdir() if htdemucs.FILE.fullmatch(file.name))
    return whole[:1] or pair or run or demucs


def _read(source: Source, path: Path) -> None:
    if path.name.endswith(".json") or not is_zip(path):
        # Not one of torch's zips: safetensors, an index, or something that says so itself.
        tensors, settings = read_weights(path), None
        if path.suffix == ".safetensors":
            settings = htdemucs.settings_of_metadata(read_metadata(path), str(path))
        if settings is not None:
            return _add_separator(source, path, tensors, settings)
        return _read_transformers(source, path, tensors)
    value = read_torch(path, inert=TRAINING_NAMES | htdemucs.NAMES)
    if isinstance(value, dict) and type(value.get("pretrained")) is str:
        source.codec_name = value["pretrained"]
    elif isinstance(value, dict) and value.keys() & {"best_state", "fsdp_best_state", "ema"}:
        _read_audiocraft(source, path, value)
    elif isinstance(value, dict) and "klass" in value:
        tensors = state_dict(value.get("state"), path)
        _add_separator(source, path, tensors, htdemucs.settings_of_package(value, str(path)))
    else:
        _read_transformers(source, path, state_dict(value, path))


def _read_audiocraft(source: Source, path: Path, value: dict) -> None:
    tensors = state_dict(_best_state(value, path), path)
    settings = _settings(value.get("xp.cfg", ""), path)
    component = "lm" if any(key.startswith("transformer.layers.") for key in tensors) else "encodec"
    source.parts[component] = Part("audiocraft", tensors, settings, str(path))
    if component == "lm":
        name = settings.get("conditioners.description.t5.name")
        source.t5_name = name if isinstance(name, str) else None
        if "exported" not in value and "optimizer" in value:  # a run's own file, with its codec
            codec = settings.get("compression_model_checkpoint", f"//pretrained/{HUB_CODEC}")
            source.codec_name = str(codec).removeprefix("//pretrained/")


def _best_state(value: dict, path: Path) -> object:
    """The state dict that audiocraft itself would export: the best of the run.

    It was measured and kept with the moving average of the weights where the run had one, so the
    average of the last epoch (`ema`) and the last weights (`model`) are not looked at; only files
    from before there was a best state are exported from `ema` (utils/export_legacy.py). A run
    with FSDP keeps the whole model in `fsdp_best_state`; its `best_state` is one process's part.
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
        raise UserError(f"{path} holds no dict of tensors as best_state")
    return state.get("model", state)  # a run's file has "model" around it, an exported one not


def _settings(value: object, path: Path) -> dict[str, str | list[str]]:
    """`xp.cfg`: YAML in an exported file, omegaconf's object in a run's own."""
    if isinstance(value, str):
        return read_xp_cfg(value)
    try:
        return read_config(value)
    except ValueError as error:
        raise UserError(f"{path} is refused: {error}") from None


def _add_separator(source: Source, path: Path, tensors: StateDict, settings: dict) -> None:
    if "separator" in source.parts:
        raise UserError(f"{path.parent} holds several models of demucs: name one of the files")
    source.parts["separator"] = Part(htdemucs.FAMILY, tensors, settings, str(path))


def _read_transformers(source: Source, path: Path, tensors: StateDict) -> None:
    config_file = path.parent / "config.json"
    config = read_json(config_file) if config_file.is_file() else {}

    def part(component: str, key: str, prefixes: tuple[str, ...], strip: bool) -> None:
        settings = config.get(key, {}) if whole else config
        if not isinstance(settings, dict):
            raise UserError(f"{config_file}: {key} must be an object")
        if settings and component == "encodec":
            settings = encodec.TRANSFORMERS_DEFAULTS | settings
        if settings and component == "lm":
            settings = {"num_attention_heads": 16} | settings
            # The first uploads say 16 for every size; the weights have heads of 64 as ever.
            width = settings.get("hidden_size")
            if settings["num_attention_heads"] == 16 and width in (1536, 2048):
                settings["num_attention_heads"] = width // 64
            if "chroma_length" in config:  # what belongs to the melody stands one level up
                settings["chroma_length"] = config["chroma_length"]
        found = {
            name.removeprefix(prefixes[0]) if strip else name: tensor
            for name, tensor in tensors.items()
            if name.startswith(prefixes)
        }
        source.parts[component] = Part("transformers", found, settings, str(path))

    whole = any(key.startswith("decoder.model.decoder.") for key in tensors)
    if whole:
        known = ("decoder.", "enc_to_dec_proj.", "audio_enc_to_dec_proj.")
        part("lm", "decoder", known, strip=False)
        part("t5", "text_encoder", ("text_encoder.",), strip=True)
        part("encodec", "audio_encoder", ("audio_encoder.",), strip=True)
        known = (*known, "text_encoder.", "audio_encoder.")
        if strangers := [key for key in tensors if not key.startswith(known)]:
            raise UserError(f"{path} holds unexpected tensors: {', '.join(strangers[:5])}")
    elif any(key.startswith("encoder.block.") for key in tensors):
        part("t5", "", ("",), strip=False)
    elif mert.KEY in tensors:
        part("mert", "", ("",), strip=False)
    elif any(re.match(r"quantizer\.(vq\.)?layers\.", key) for key in tensors):
        part("encodec", "", ("",), strip=False)


# --- The Hub -----------------------------------------------------------------------------------


def download(repo: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Fetches what can be converted from a repository, into the Hub's cache, and nothing more.

    audiocraft's pair of files is preferred where there is one: half the size, and the codec in
    full precision where transformers' file of the stereo models rounds it.

    Returns:
      the folder and the commit.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo) or ".." in repo:
        raise UserError(f"no such file or folder, and no name of a Hub repository: {repo}")
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
            repo, revision=info.sha, allow_patterns=files_to_download(names)
        )
    except Exception as error:  # its own kinds, the network's and the file system's
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"could not download {repo} from the Hugging Face Hub: {reason}") from None
    return Path(folder), info.sha


def files_to_download(names: set[str]) -> list[str]:
    """The files of a repository that are needed, as patterns without folders."""
    if LM_FILE in names:
        return [LM_FILE, CODEC_FILE]
    for weights in WEIGHT_FILES:
        if weights in names:
            shards = [_SHARDS[weights]] if weights in _SHARDS else []
            return ["config.json", TOKENIZER, weights, *shards]
    if demucs := [name for name in sorted(names) if htdemucs.FILE.fullmatch(name)]:
        return demucs
    return [LM_FILE, *WEIGHT_FILES]  # none of which is there; `open_source` says so
