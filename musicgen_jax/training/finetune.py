"""Fine-tuning: a training run that starts from a trained language model.

The result is a model or an adapter.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from musicgen_jax.codec import Codec
from musicgen_jax.config import MusicGenConfig, toml
from musicgen_jax.config.schema import Positive, check_ranges
from musicgen_jax.console import Bar, plain
from musicgen_jax.errors import UserError
from musicgen_jax.nn import lora
from musicgen_jax.nn.lora import LoraConfig
from musicgen_jax.storage import checkpoint, hub, lora_file
from musicgen_jax.storage.loading import load_style_conditioner
from musicgen_jax.storage.tokenizer import Tokenizer
from musicgen_jax.training import lm_run, trained_model
from musicgen_jax.training.batches import (
    MELODY_DROPOUT,
    STYLE_DROPOUT,
    Dropout,
    fixed_length,
)
from musicgen_jax.training.data.encode import encode
from musicgen_jax.training.data.shards import INDEX, SETTINGS, CodeShards
from musicgen_jax.training.layout import Layout, MeshConfig
from musicgen_jax.training.lm import LMTrainConfig, LMTrainState, Phase, init
from musicgen_jax.training.optimizer import OptimizerConfig
from musicgen_jax.training.run import CONFIG, Run

MODEL, ADAPTER = "model", "adapter.safetensors"  # the result, in the run's folder
_TEXT_LENGTH = 64  # tokens of a prompt; longer ones are cut

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Settings of a fine-tuning run, saved as its config.toml."""

    model: str  # the model to fine-tune
    data: str  # folder or manifest of audio, or folder of codes
    codes: str  # folder for the codes of the audio
    train: LMTrainConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    save_every: Positive = 200
    log_every: Positive = 25

    def __post_init__(self) -> None:
        check_ranges(self)


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
    mesh: MeshConfig | None = None,
    save_every: int = 200,
    log_every: int = 25,
    seed: int = 0,
) -> FinetuneConfig:
    """Makes the settings from command-line arguments.

    Raises:
      UserError: the model does not exist, or a setting is invalid.
    """
    if lora is None and (alpha is not None or target is not None):
        raise UserError("--alpha and --target belong to an adapter: give --lora RANK too")
    config = checkpoint.load_config(hub.find_model(model))
    if learning_rate is None:
        learning_rate = 1e-5 if lora is None else 2e-4
    frames = _frames(config, config.max_duration if seconds is None else seconds)
    try:
        adapter = None
        if lora is not None:
            strength = 2.0 * lora if alpha is None else alpha
            adapter = LoraConfig(lora, strength, LoraConfig.target if target is None else target)
        return FinetuneConfig(
            model=model,
            data=data,
            codes=codes,
            train=LMTrainConfig(
                phases=(Phase(steps, frames, batch_size),),
                # AdamW as in audiocraft: Muon's steps have the same size in all directions, which
                # suits new weights but not trained ones.
                optimizer=OptimizerConfig(
                    learning_rate=learning_rate, warmup_steps=min(100, steps // 10), muon=False
                ),
                dropout=_dropout(config),
                dtype=dtype,
                accumulate=accumulate,
                remat=remat,
                lora=adapter,
                seed=seed,
            ),
            mesh=mesh or MeshConfig(),
            save_every=save_every,
            log_every=log_every,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def resumed_config(folder: str | os.PathLike, options: Mapping[str, Any]) -> FinetuneConfig:
    """The settings of a resumed run.

    The number of steps may change, and so may the options that do not affect the result:
    accumulate, remat, mesh, save_every and log_every. The warm-up of the run does not change.

    Args:
      folder: of the run.
      options: arguments of `make_config`; None keeps the setting of the run.

    Raises:
      UserError: the run does not exist, or an option that must not change differs from the run.
    """
    config = read_config(folder)
    train, adapter = config.train, config.train.lora
    given = {name: value for name, value in options.items() if value is not None}
    if "seconds" in given:
        architecture = checkpoint.load_config(hub.find_model(config.model))
        given["seconds"] = _frames(architecture, given["seconds"]) / architecture.frame_rate
    fixed = {
        "model": config.model,
        "data": config.data,
        "codes": config.codes,
        "lora": adapter and adapter.rank,
        "alpha": adapter and adapter.alpha,
        "target": adapter and adapter.target,
        "batch_size": train.phases[0].batch_size,
        "learning_rate": train.optimizer.learning_rate,
        "dtype": train.dtype,
        "seed": train.seed,
    }
    if "seconds" in given:
        fixed["seconds"] = train.phases[0].frames / architecture.frame_rate
    for name, was in fixed.items():
        if name in given and given[name] != was:
            began = f"with {name} {was!r}" if was is not None else f"without {name}"
            raise UserError(
                f"{folder} began {began}, not {given[name]!r}: leave it out, or start a new run"
            )
    try:
        phase = dataclasses.replace(
            train.phases[0], steps=given.get("steps", train.phases[0].steps)
        )
        own = {name: given[name] for name in ("accumulate", "remat") if name in given}
        train = dataclasses.replace(train, phases=(phase,), **own)
        around = {n: given[n] for n in ("mesh", "save_every", "log_every") if n in given}
        return dataclasses.replace(config, train=train, **around)
    except ValueError as error:
        raise UserError(str(error)) from None


def _frames(model: MusicGenConfig, seconds: float) -> int:
    """The number of frames of a segment.

    Raises:
      UserError: the segment is longer than the model's window, or too short.
    """
    if not 0 < seconds <= model.max_duration:
        raise UserError(
            f"--seconds must be over 0 and at most {model.max_duration:g}, got {seconds:g}"
        )
    frames = int(seconds * model.frame_rate)
    if frames <= max(model.lm.delays):
        raise UserError(f"--seconds {seconds:g} is shorter than the delays of the codebooks")
    return frames


def _dropout(model: MusicGenConfig) -> Dropout:
    """The dropout of conditions that audiocraft uses for this kind of model."""
    if model.lm.style is not None:
        return STYLE_DROPOUT
    return MELODY_DROPOUT if model.lm.chroma_bins else Dropout()


def read_config(folder: str | os.PathLike) -> FinetuneConfig:
    """Reads the settings of a run.

    Raises:
      UserError: the run does not exist.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(f"no run to resume in {folder}: it has no {CONFIG}")
    return toml.read(path, FinetuneConfig)


def finetune(
    config: FinetuneConfig,
    folder: str | os.PathLike,
    *,
    resume: bool = False,
    data_changed: bool = False,
    say: Say = lambda line: None,
    bar: Bar = plain,
) -> Path:
    """Trains, or resumes training, and writes the result.

    The text encoder is frozen, as in audiocraft. MERT and the style conditioner are frozen too;
    encoding computes their codes. Training and the resulting model use float32, even if the
    original model is stored in another dtype.

    Args:
      config: settings of the run.
      folder: of the run; see `Run`.
      resume: whether the run may exist already.
      data_changed: whether to resume although the data has changed.
      say: receives lines about the progress.
      bar: wraps the iterations over clips and over steps.

    Returns:
      the folder of the model, or the file of the adapter.

    Raises:
      UserError: the model, the data or the settings are invalid.
    """
    source = hub.find_model(config.model)
    model, settings = checkpoint.load_config(source), config.train
    if settings.lora is not None:
        lora.targets(model.lm, settings.lora.target)  # fails early if the pattern matches nothing
    layout = Layout(config.mesh.make(), config.mesh.fsdp)
    for phase in settings.phases:
        layout.check_batch(phase.batch_size // settings.accumulate)
    codes = _open_codes(config, source, model, say, bar)
    tokenize = fixed_length(Tokenizer(source / checkpoint.TOKENIZER), _TEXT_LENGTH)

    def begin() -> LMTrainState:
        # The frozen weights under an adapter can use the dtype of the computation.
        dtype = "float32" if settings.lora is None else settings.dtype
        t5, music = lm_run.load(source, "t5", model.t5), lm_run.load(source, "lm", model.lm, dtype)
        return init(model, settings, t5, lm=music, layout=layout)

    with Run(
        folder, config, fingerprint=codes.fingerprint, resume=resume, data_changed=data_changed
    ) as run:
        state = lm_run.complete(
            run,
            model,
            settings,
            codes,
            tokenize,
            layout=layout,
            begin=begin,
            only_trained=True,
            say=say,
            bar=bar,
            log_every=config.log_every,
            save_every=config.save_every,
        )
        run.finish()
        if settings.lora is not None:
            weights = jax.device_get(state.averaged["lora"])
            adapter = lora.Adapter(settings.lora, model.lm, model.name, weights)
            lora_file.save(run.folder / ADAPTER, adapter)
            return run.folder / ADAPTER
        params = dict(state.averaged["lm"])
        if model.lm.style is not None:
            params["style_conditioner"] = state.params["style"]
        about = checkpoint.load_info(source).source
        trained_model.write(
            run.folder / MODEL,
            model,
            {"lm": params},
            license=(source / "LICENSE").read_text(encoding="utf-8"),
            source={**about, "finetuned": {"steps": settings.steps, "data": config.data}},
            base=source,
        )
        return run.folder / MODEL


# --- The data ----------------------------------------------------------------------------------


def _open_codes(
    config: FinetuneConfig, source: Path, model: MusicGenConfig, say: Say, bar: Bar
) -> CodeShards:
    data = Path(config.data)
    if any((data / name).is_file() for name in (INDEX, SETTINGS)):
        codes = CodeShards.open(data)
    else:
        say(f"encoding {data} to {config.codes}")
        codes = encode(data, config.codes, source, log=say, bar=bar)
    if codes.codebooks != model.lm.n_q or codes.codec != Codec.from_pretrained(source).fingerprint:
        raise UserError(
            f"{codes.folder} was encoded by a different codec from that of {config.model}: "
            f"encode the "
            f"audio with `musicgen-jax train encode DATA OUT --model {config.model}`"
        )
    if model.lm.chroma_bins:
        codes.require_chroma(model.lm, config.model)
    if model.lm.style is not None:
        conditioner = load_style_conditioner(source, model.lm).rvq.fingerprint
        frames = min(phase.frames for phase in config.train.phases)
        codes.require_styles(conditioner, frames, config.model)
        if codes.unstyled:
            say(f"{codes.unstyled} of {len(codes)} clips are too short to have a style")
    return codes
