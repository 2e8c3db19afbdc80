"""A training run of a codec, from the settings to the codec's folder."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from musicgen_jax.config import EncodecConfig
from musicgen_jax.console import Bar, plain
from musicgen_jax.errors import UserError
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.runtime import sharding
from musicgen_jax.storage import checkpoint, hub
from musicgen_jax.training import codec, records, trained_model
from musicgen_jax.training.codec_settings import CodecRunConfig
from musicgen_jax.training.run import Run

_LICENSE = "The author of this folder trained its codec and chooses the licence for it.\n"
_BASED = "\nIts training began with the codec of {base}, whose licence applies to it:\n\n{text}"


def train(
    folder: Path,
    config: CodecRunConfig,
    clips: Any,
    *,
    valid: Any = None,
    base: Path | None = None,
    resume: bool = False,
    data_changed: bool = False,
    say: Callable[[str], None] = records.say,
    bar: Bar = plain,
) -> Path:
    """Trains a codec in a run's folder and returns the codec's folder, `folder`/codec.

    Args:
      folder: of the run.
      config: settings; with a base, `config.codec` is the base's architecture.
      clips: `codec.Clips` with a `fingerprint`, at the codec's sample rate and channels.
      valid: the same for validation, or None.
      base: folder of a codec or model with the initial weights (default: random weights).
      resume: whether to resume a run that exists.
      data_changed: whether the data may differ from the data that the run began with.
      say: receives lines about the progress.
      bar: wraps the iteration over steps.
    """
    model, settings = config.codec, config.training
    if base is not None and not settings.train_decoder_only:
        settings = dataclasses.replace(settings, kmeans_init=False)  # the base has codebooks
    mesh = _mesh(config)
    abstract = jax.eval_shape(lambda: codec.init(model, settings))
    with Run(
        folder,
        config,
        fingerprint=clips.fingerprint,
        resume=resume,
        data_changed=data_changed,
        keep=config.keep,
        tensorboard=config.tensorboard,
    ) as run:
        restored = run.restore(abstract, settings.steps)
        if restored is None:
            params = None if base is None else load_params(base, model)
            began, state = 0, codec.init(model, settings, params)
        else:
            began, state = restored
        if began < settings.steps:
            state = codec.train(
                model,
                settings,
                clips,
                state=state,
                log=records.printing(run.log, settings.steps, began_at=began, say=say),
                save=lambda state, score: run.save(int(state.step), state, score=score),
                every=config.log_every,
                save_every=config.save_every,
                held_out=None if valid is None else _held_out(config, valid),
                mesh=mesh,
                bar=bar,
            )
        _write(folder / "codec", config, codec.codec_params(state), base)
        run.finish()
    return folder / "codec"


def load_params(base: Path, model: EncodecConfig) -> dict:
    """Loads the codec's parameters from the folder of a codec or model."""
    shape = module_shapes(Encodec, model)
    return checkpoint.load_params(base, "encodec", nnx.to_pure_dict(nnx.state(shape, nnx.Param)))


def find_base(name: str) -> tuple[Path, EncodecConfig]:
    """Finds the folder of a codec or model; returns it and the codec's architecture.

    Raises:
      UserError: the folder does not exist, or it contains no codec.
    """
    folder = hub.find_codec(name)
    part = checkpoint.load_info(folder).parts.get("encodec")
    if not isinstance(part, EncodecConfig):
        raise UserError(f"{folder} holds no codec that could be trained")
    return folder, part


def _mesh(config: CodecRunConfig) -> Any:
    count = config.devices or jax.device_count()
    if count == 1:
        return None
    if config.training.batch_size % count:
        raise UserError(
            f"training.batch_size {config.training.batch_size} cannot be split into {count} "
            f"equal parts: change it or devices"
        )
    return sharding.make_mesh(data=count)


def _held_out(config: CodecRunConfig, valid: Any) -> np.ndarray:
    """Fixed validation clips, float32 [N, C, W]."""
    rng = np.random.default_rng(0)
    hop = config.codec.hop_length
    frames = max(round(config.valid_seconds * config.codec.sample_rate / hop), 1)
    frames = max(frames, -(-1024 // hop))  # a window of the mel spectrogram
    clips = [valid.segment(rng, frames * hop) for _ in range(config.valid_clips)]
    return np.stack(clips).astype(np.float32)


def _write(folder: Path, config: CodecRunConfig, params: dict, base: Path | None) -> None:
    """Writes a folder that `Codec.from_pretrained` loads."""
    license_text, source = _LICENSE, {"made by": "musicgen-jax train codec", "name": config.name}
    if base is not None:
        text = (base / "LICENSE").read_text(encoding="utf-8")
        license_text += _BASED.format(base=config.base, text=text)
        source["base"] = config.base
    params = {"encodec": jax.tree.map(np.asarray, params)}
    trained_model.write(folder, config.codec, params, license=license_text, source=source)
