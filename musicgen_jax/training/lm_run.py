"""One training run of a language model, from its settings to the folder of the model."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicgen_jax.config import MusicGenConfig
from musicgen_jax.errors import UserError
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.storage import checkpoint
from musicgen_jax.training import lm, lm_loop, records
from musicgen_jax.training.batches import Dropout, MelodyExamples, melody_shape
from musicgen_jax.training.layout import Layout
from musicgen_jax.training.lm_settings import LMRunConfig
from musicgen_jax.training.run import Run
from musicgen_jax.training.samples import Samples, write_model


def train(
    folder: Path,
    config: LMRunConfig,
    model: MusicGenConfig,
    base: Path,
    examples: Any,
    tokenize: Any,
    *,
    valid: Any = None,
    resume: bool = False,
    data_changed: bool = False,
) -> Path:
    """Trains in a run's folder and returns the folder of the model, `folder`/model.

    Args:
      folder: of the run.
      config: settings.
      model: the architecture.
      base: folder of the model whose codec and text encoder are used.
      examples: `Examples` with a `fingerprint`, or `MelodyExamples` for a melody model.
      tokenize: prompts to ids and masks of one fixed length.
      valid: the same for validation, or None.
      resume: whether to go on with a run that is there.
      data_changed: whether the data may be other than it was.
    """
    settings = config.training
    layout = Layout(config.mesh.make(), config.mesh.fsdp)
    for phase in settings.phases:
        layout.check_batch(phase.batch_size // settings.accumulate)
    _check_melody(model, examples)
    abstract = lm.abstract_state(model, settings, layout)
    with Run(
        folder,
        config,
        fingerprint=examples.fingerprint,
        resume=resume,
        data_changed=data_changed,
        keep=config.keep,
        tensorboard=config.tensorboard,
    ) as run:
        restored = run.restore(abstract)
        if restored is None:
            began, state = 0, _begin(config, model, base, layout)
        else:
            began, state = restored
        if began < settings.steps:
            state = lm_loop.train(
                model,
                settings,
                examples,
                tokenize,
                state=state,
                layout=layout,
                log=records.printing(run.log, settings.steps, began_at=began),
                save=lambda state, score: run.save(int(state.step), state, score=score),
                evaluate=_evaluation(config, model, valid, tokenize, layout),
                after=_sampling(folder, config, model, base),
                every=config.log_every,
                save_every=config.save_every,
            )
        source = {"made by": "musicgen-jax train lm", "base": config.base, "steps": settings.steps}
        params = state.averaged
        write_model(folder / "model", model, params["lm"], params["t5"], base, source)
        if state.ema is not None:  # beside the averaged ones, those of the last step
            last = state.params
            write_model(folder / "model-last", model, last["lm"], last["t5"], base, source)
        run.finish()
    return folder / "model"


def _check_melody(model: MusicGenConfig, examples: Any) -> None:
    if model.lm.chroma_bins and not isinstance(examples, MelodyExamples):
        raise UserError("a melody model needs examples with chroma, which this data does not have")


def _begin(config: LMRunConfig, model: MusicGenConfig, base: Path, layout: Layout) -> Any:
    """The state before the first step: the base's text encoder, and new music or the base's."""

    def load(name: str, module: Any) -> dict:
        shape = nnx.eval_shape(lambda: module(rngs=nnx.Rngs(0)))
        return checkpoint.load_params(base, name, nnx.to_pure_dict(nnx.state(shape)))

    t5 = load("t5", partial(T5Encoder, model.t5))
    music = load("lm", partial(LM, model.lm)) if config.continue_base else None
    return lm.init(model, config.training, t5, lm=music, layout=layout)


def _evaluation(
    config: LMRunConfig, model: MusicGenConfig, valid: Any, tokenize: Any, layout: Layout
) -> Any:
    """Parameters to the mean loss over fixed batches of what is not trained on."""
    if valid is None:
        return lambda params: {}

    training = config.training
    loss = jax.jit(
        lm.make_loss(
            model, training.codebook_weights, dtype=jnp.dtype(training.dtype), layout=layout
        )
    )
    last = dataclasses.replace(training.phases[-1], steps=config.valid_batches)
    still = dataclasses.replace(training, phases=(last,), dropout=Dropout(0.0))

    def evaluate(params: Any) -> dict:
        source = lm_loop.batches(
            valid, tokenize, still, 0, chroma_shape=melody_shape(model), layout=layout
        )
        means = [loss(params, batch)[0] for _, batch in source]
        mean = float(np.mean(jax.device_get(means)))
        return {"valid": mean, "valid ppl": float(np.exp(min(mean, 80.0)))}

    return evaluate


def _sampling(folder: Path, config: LMRunConfig, model: MusicGenConfig, base: Path) -> Any:
    """What is called after every step to make samples when they are due."""
    if not config.sample_every:
        return lambda step, state: None
    maker = Samples(folder / "samples", model, base, config.prompts, config.sample_seconds)

    def after(step: int, state: Any) -> None:
        if step % config.sample_every == 0:
            maker.make(step, state.averaged)

    return after
