"""A training run of a language model, with new or trained initial weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from musicgen_jax.config import MusicGenConfig
from musicgen_jax.console import Bar, plain
from musicgen_jax.errors import UserError
from musicgen_jax.nn.lm import LM
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.storage import checkpoint
from musicgen_jax.training import lm, lm_loop, records, trained_model
from musicgen_jax.training.batches import Dropout, MelodyExamples, melody_shape
from musicgen_jax.training.layout import Layout
from musicgen_jax.training.lm import LMTrainConfig, LMTrainState
from musicgen_jax.training.lm_settings import LMRunConfig
from musicgen_jax.training.run import Run
from musicgen_jax.training.samples import Samples

_LICENSE = """The author of this folder trained its language model and chooses the licence for it.
The text encoder and the codec are those of {base}, whose licence applies to them:

{text}
"""
_MODULES: dict[str, Any] = {"t5": T5Encoder, "lm": LM}


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
    say: Callable[[str], None] = records.say,
    bar: Bar = plain,
) -> Path:
    """Trains a model in a run's folder and returns the model's folder, `folder`/model.

    Args:
      folder: of the run.
      config: settings.
      model: the architecture.
      base: folder of the model that provides the codec and the text encoder.
      examples: `Examples` with a `fingerprint`, or `MelodyExamples` for a melody model.
      tokenize: prompts to ids and masks of one fixed length.
      valid: the same for validation, or None.
      resume: whether to resume a run that exists.
      data_changed: whether the data may differ from the data that the run began with.
      say: receives lines about the progress.
      bar: wraps the iteration over steps.
    """
    settings = config.training
    layout = Layout(config.mesh.make(), config.mesh.fsdp)
    for phase in settings.phases:
        layout.check_batch(phase.batch_size // settings.accumulate)
    fingerprint = examples.fingerprint
    if model.lm.chroma_bins and not isinstance(examples, MelodyExamples):
        raise UserError("a melody model needs examples with chroma, which this data does not have")

    def begin() -> LMTrainState:
        music = load(base, "lm", model.lm) if config.continue_base else None
        return lm.init(model, settings, load(base, "t5", model.t5), lm=music, layout=layout)

    with Run(
        folder,
        config,
        fingerprint=fingerprint,
        resume=resume,
        data_changed=data_changed,
        keep=config.keep,
        tensorboard=config.tensorboard,
    ) as run:
        state = complete(
            run,
            model,
            settings,
            examples,
            tokenize,
            layout=layout,
            begin=begin,
            evaluate=_evaluation(config, model, valid, tokenize, layout),
            after=_sampling(folder, config, model, base, say),
            say=say,
            bar=bar,
            log_every=config.log_every,
            save_every=config.save_every,
        )
        text = (base / "LICENSE").read_text(encoding="utf-8")
        about = {
            "license": _LICENSE.format(base=config.base, text=text),
            "source": {
                "made by": "musicgen-jax train lm",
                "base": config.base,
                "steps": settings.steps,
            },
            "base": base,
        }
        trained_model.write(folder / "model", model, _trained_parts(state.averaged), **about)
        if state.ema is not None:  # also the last step's parameters, not averaged
            trained_model.write(folder / "model-last", model, _trained_parts(state.params), **about)
        run.finish()
    return folder / "model"


def _trained_parts(params: dict) -> dict:
    return {name: params[name] for name in ("t5", "lm")}


def complete(
    run: Run,
    model: MusicGenConfig,
    config: LMTrainConfig,
    examples: Any,
    tokenize: Any,
    *,
    layout: Layout,
    begin: Callable[[], LMTrainState],
    only_trained: bool = False,
    evaluate: Callable[[Any], dict] = lambda params: {},
    after: Callable[[int, LMTrainState], None] = lambda step, state: None,
    say: Callable[[str], None] = records.say,
    bar: Bar = plain,
    log_every: int,
    save_every: int,
) -> LMTrainState:
    """Trains from the last checkpoint of a run, or from its start, to the last step.

    Args:
      run: the run.
      model: the architecture.
      config: how to train.
      examples: see `lm_loop.train`.
      tokenize: see `lm_loop.train`.
      layout: of the arrays on the devices.
      begin: makes the state before the first step.
      only_trained: whether checkpoints leave out the frozen parameters, which `begin` restores.
      evaluate: see `lm_loop.train`.
      after: see `lm_loop.train`.
      say: receives lines about the progress.
      bar: wraps the iteration over steps.
      log_every: steps between records.
      save_every: steps between checkpoints.
    """

    def kept(state: LMTrainState) -> LMTrainState:
        if not only_trained:
            return state
        return dataclasses.replace(state, params=lm.trained(state.params, config))

    restored = run.restore(kept(lm.abstract_state(model, config, layout)), config.steps)
    if restored is None:
        began, state = 0, begin()
    else:
        began, state = restored
        say(f"resuming from step {began}")
        if only_trained:
            state = dataclasses.replace(state, params={**begin().params, **state.params})
    if began >= config.steps:
        return state
    return lm_loop.train(
        model,
        config,
        examples,
        tokenize,
        state=state,
        layout=layout,
        log=records.printing(run.log, config.steps, began_at=began, say=say),
        save=lambda state, score: run.save(int(state.step), kept(state), score=score),
        evaluate=evaluate,
        after=after,
        every=log_every,
        save_every=save_every,
        bar=bar,
    )


def load(base: Path, component: str, config: Any, dtype: DTypeLike = "float32") -> dict:
    """Loads the parameters of a trained component.

    Args:
      base: folder of the model.
      component: "t5" or "lm".
      config: of the component.
      dtype: of the parameters. A style conditioner stays float32: rounding would change its codes.
    """

    def narrowed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        whole = path[0].key == "style_conditioner"
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype("float32" if whole else dtype))

    shapes = nnx.to_pure_dict(nnx.state(module_shapes(_MODULES[component], config), nnx.Param))
    abstract = jax.tree_util.tree_map_with_path(narrowed, shapes)
    return checkpoint.load_params(base, component, abstract)


def _evaluation(
    config: LMRunConfig, model: MusicGenConfig, valid: Any, tokenize: Any, layout: Layout
) -> Any:
    """Makes the function that maps parameters to the mean loss over fixed validation batches."""
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


def _sampling(
    folder: Path,
    config: LMRunConfig,
    model: MusicGenConfig,
    base: Path,
    say: Callable[[str], None],
) -> Any:
    """Makes the function to call after every step; it makes samples when they are due."""
    if not config.sample_every:
        return lambda step, state: None
    maker = Samples(folder / "samples", model, base, config.prompts, config.sample_seconds, say)

    def after(step: int, state: Any) -> None:
        if step % config.sample_every == 0:
            maker.make(step, state.averaged)

    return after
