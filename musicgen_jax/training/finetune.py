"""Fine-tuning: the trainer of language models, from a trained one, to a model or an adapter."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.codec import Codec
from musicgen_jax.config import MusicGenConfig, toml
from musicgen_jax.errors import UserError
from musicgen_jax.nn import lora
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.lora import LoraConfig
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.storage import checkpoint, hub, lora_file
from musicgen_jax.storage.loading import load_style_conditioner
from musicgen_jax.storage.tokenizer import Tokenizer
from musicgen_jax.training.batches import (
    MELODY_DROPOUT,
    STYLE_DROPOUT,
    Dropout,
    fixed_length,
)
from musicgen_jax.training.data.encode import encode
from musicgen_jax.training.data.shards import INDEX, SETTINGS, CodeShards
from musicgen_jax.training.layout import Layout, MeshConfig
from musicgen_jax.training.lm import (
    LMTrainConfig,
    LMTrainState,
    Phase,
    abstract_state,
    init,
    trained,
)
from musicgen_jax.training.lm_loop import train
from musicgen_jax.training.optimizer import OptimizerConfig
from musicgen_jax.training.run import CONFIG, Run

MODEL, ADAPTER = "model", "adapter.safetensors"  # the result, in the run's folder
_TEXT_LENGTH = 64  # tokens of a prompt; longer ones are cut
_MODULES = {"t5": T5Encoder, "lm": LM}

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """What a run of fine-tuning is: saved as its config.toml."""

    model: str  # which it begins from
    data: str  # audio, or codes
    codes: str  # where audio is kept as codes
    train: LMTrainConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    save_every: int = 200
    log_every: int = 25

    def __post_init__(self) -> None:
        if self.save_every < 1 or self.log_every < 1:
            raise ValueError("save_every and log_every must be at least 1")


def make_config(
    model: str,
    data: str,
    *,
    codes: str,
    lora: int | None = None,
    alpha: float | None = None,
    target: str | None = None,
    steps: int = 1000,
    batch_size: int = 8,
    accumulate: int = 1,
    seconds: float | None = None,
    learning_rate: float | None = None,
    dtype: str = "float32",
    remat: bool = False,
    devices: int = 1,
    save_every: int = 200,
    log_every: int = 25,
    seed: int = 0,
) -> FinetuneConfig:
    """Settings as the command line takes them.

    Raises:
      UserError: there is no such model, or a setting makes no sense.
    """
    if lora is None and (alpha is not None or target is not None):
        raise UserError("--alpha and --target are of an adapter: give --lora RANK too")
    config = checkpoint.load_config(hub.find_model(model))
    longest = config.max_duration
    if seconds is not None and not 0 < seconds <= longest:
        raise UserError(f"--seconds must be over 0 and at most {longest:g}, got {seconds:g}")
    frames = int((seconds or longest) * config.frame_rate)
    if frames <= max(config.lm.delays):
        raise UserError(f"--seconds {seconds:g} is shorter than the delays of the codebooks")
    try:
        adapter = None
        if lora is not None:
            strength = 2.0 * lora if alpha is None else alpha
            adapter = LoraConfig(lora, strength, LoraConfig.target if target is None else target)
        rate = learning_rate or (1e-5 if lora is None else 2e-4)
        return FinetuneConfig(
            model=model,
            data=data,
            codes=codes,
            train=LMTrainConfig(
                phases=(Phase(steps, frames, batch_size),),
                # AdamW as in audiocraft: Muon's steps are of one size in all directions, which
                # suits weights that are new and not those that are trained.
                optimizer=OptimizerConfig(
                    learning_rate=rate, warmup_steps=min(100, steps // 10), muon=False
                ),
                dropout=_dropout(config),
                dtype=dtype,
                accumulate=accumulate,
                remat=remat,
                lora=adapter,
                seed=seed,
            ),
            mesh=MeshConfig(data=devices),
            save_every=save_every,
            log_every=log_every,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def _dropout(model: MusicGenConfig) -> Dropout:
    """How audiocraft leaves out conditions of such a model."""
    if model.lm.style is not None:
        return STYLE_DROPOUT
    return MELODY_DROPOUT if model.lm.chroma_bins else Dropout()


def read_config(folder: str | os.PathLike) -> FinetuneConfig:
    """The settings of a run that goes on.

    Raises:
      UserError: there is no such run.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(f"no run to go on with in {folder}: it has no {CONFIG}")
    return toml.read(path, FinetuneConfig)


def finetune(
    config: FinetuneConfig,
    folder: str | os.PathLike,
    *,
    resume: bool = False,
    say: Say = lambda line: None,
) -> Path:
    """Trains, going on where a run was cut off, and writes the result.

    The text encoder stays as it is, as in audiocraft, and so does all that hears a style: MERT and
    the style conditioner, whose codes are made when audio is encoded. Training is in float32 and so
    is the model that comes of it, whatever the one it began from is stored in.

    Args:
      config: what to do.
      folder: of the run, see `Run`.
      resume: whether the run may be there already.
      say: is told what happens, in lines.

    Returns:
      the model's folder, or the adapter's file.

    Raises:
      UserError: the model, the data or the settings are at fault.
    """
    source = hub.find_model(config.model)
    model = checkpoint.load_config(source)
    if config.train.lora is not None:
        lora.targets(model.lm, config.train.lora.target)  # says at once if it matches nothing
    layout = Layout(config.mesh.make())
    codes = _open_codes(config, source, model, say)
    tokenize = fixed_length(Tokenizer(source / checkpoint.TOKENIZER), _TEXT_LENGTH)
    with Run(folder, config, fingerprint=codes.fingerprint, resume=resume) as run:
        state = _begin(config.train, model, source, layout, run, say)

        def log(record: dict) -> None:
            run.log(record)
            if "loss" in record:
                say(f"step {record['step']} of {config.train.steps}: loss {record['loss']:.4g}")

        state = train(
            model,
            config.train,
            codes,
            tokenize,
            state=state,
            layout=layout,
            log=log,
            save=lambda state, score: run.save(
                int(state.step), _changing(state, config.train), score=score
            ),
            every=config.log_every,
            save_every=config.save_every,
        )
        run.finish()
        if config.train.lora is not None:
            return _write_adapter(config, model, state, run.folder / ADAPTER)
        return _write_model(config, model, source, state, run.folder / MODEL)


# --- The data ----------------------------------------------------------------------------------


def _open_codes(
    config: FinetuneConfig, source: Path, model: MusicGenConfig, say: Say
) -> CodeShards:
    data = Path(config.data)
    if any((data / name).is_file() for name in (INDEX, SETTINGS)):
        codes = CodeShards.open(data)
    else:
        say(f"encoding {data} to {config.codes}")
        codes = encode(data, config.codes, source, log=say)
    if codes.codebooks != model.lm.n_q or codes.codec != Codec.from_pretrained(source).fingerprint:
        raise UserError(
            f"{codes.folder} was encoded by another codec than that of {config.model}: encode the "
            f"audio with `musicgen-jax train encode DATA OUT --model {config.model}`"
        )
    if model.lm.chroma_bins:
        codes.require_chroma(model.lm.chroma_bins, config.model)
    if model.lm.style is not None:
        conditioner = load_style_conditioner(source, model.lm).rvq.fingerprint
        frames = min(phase.frames for phase in config.train.phases)
        codes.require_styles(conditioner, frames, config.model)
        if codes.unstyled:
            say(f"{codes.unstyled} of {len(codes)} clips are too short to have a style")
    return codes


# --- The state ---------------------------------------------------------------------------------


def _begin(
    config: LMTrainConfig,
    model: MusicGenConfig,
    source: Path,
    layout: Layout,
    run: Run,
    say: Say,
) -> LMTrainState:
    """The model's weights, and what the run has changed of them so far."""
    # What only stands beside an adapter may be as narrow as the computation.
    dtype = config.dtype if config.lora is not None else "float32"
    state = init(
        model,
        config,
        _read(source, "t5", model.t5, jnp.float32),
        lm=_read(source, "lm", model.lm, dtype),
        layout=layout,
    )
    found = run.restore(_changing(abstract_state(model, config, layout), config))
    if found is None:
        return state
    step, changing = found
    say(f"going on from step {step}")
    return dataclasses.replace(changing, params={**state.params, **changing.params})


def _changing(state: LMTrainState, config: LMTrainConfig) -> LMTrainState:
    """A checkpoint: without what stays as it was in the model."""
    return dataclasses.replace(state, params=trained(state.params, config))


def _read(source: Path, component: str, config: Any, dtype: DTypeLike) -> dict:
    module: Any = _MODULES[component]
    shapes = module_shapes(module, config)

    def narrowed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        whole = path[0].key == "style_conditioner"  # whose codes mean nothing once they are rounded
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype("float32" if whole else dtype))

    abstract = jax.tree_util.tree_map_with_path(
        narrowed, nnx.to_pure_dict(nnx.state(shapes, nnx.Param))
    )
    return checkpoint.load_params(source, component, abstract)


# --- The result --------------------------------------------------------------------------------


def _write_adapter(
    config: FinetuneConfig, model: MusicGenConfig, state: LMTrainState, path: Path
) -> Path:
    assert config.train.lora is not None
    weights = jax.device_get(state.averaged["lora"])
    lora_file.save(path, lora.Adapter(config.train.lora, model.lm, model.name, weights))
    return path


def _write_model(
    config: FinetuneConfig,
    model: MusicGenConfig,
    source: Path,
    state: LMTrainState,
    path: Path,
) -> Path:
    """The model's folder with the new language model in it; the rest is the old one's files."""
    info = checkpoint.load_info(source)
    with checkpoint.writing_model(path, overwrite=True) as writer:
        for component in checkpoint.component_configs(model):
            if component == "lm":
                lm = jax.device_get(state.averaged["lm"])
                if model.lm.style is not None:
                    lm["style_conditioner"] = jax.device_get(state.params["style"])
                writer.write_component("lm", lm)
            else:
                writer.copy_component(source, component)
        writer.finish(
            model,
            tokenizer=source / checkpoint.TOKENIZER,
            license=(source / "LICENSE").read_text(encoding="utf-8"),
            source={**info.source, "finetuned": {"steps": config.train.steps, "data": config.data}},
        )
    return path
