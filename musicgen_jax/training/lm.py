"""How the language model and its text encoder are trained: settings, state, loss and step."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from musicgen_jax.config import MusicGenConfig
from musicgen_jax.config.schema import Natural, Positive, check_ranges
from musicgen_jax.errors import UserError
from musicgen_jax.nn import lora
from musicgen_jax.nn.condition import Condition, Embedded
from musicgen_jax.nn.lm import LM, compute_hidden, predictions_of
from musicgen_jax.nn.lora import LoraConfig
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.nn.t5 import T5Encoder
from musicgen_jax.runtime.sharding import place
from musicgen_jax.training import ema
from musicgen_jax.training.batch import Batch
from musicgen_jax.training.batches import Dropout
from musicgen_jax.training.layout import Layout
from musicgen_jax.training.losses import codebook_cross_entropy, label_cross_entropy
from musicgen_jax.training.optimizer import OptimizerConfig, make_optimizer

ONE_DEVICE = Layout()


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training with one length of segments."""

    steps: Positive
    frames: Positive
    batch_size: Positive

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class LMTrainConfig:
    """How to train a language model: short segments first, whole windows later."""

    phases: tuple[Phase, ...]
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    dropout: Dropout = dataclasses.field(default_factory=Dropout)
    freeze_text: bool = True  # do not train the text encoder; audiocraft does not either
    codebook_weights: tuple[float, ...] = ()  # of the loss; (): equal weights, as in audiocraft
    dtype: str = "float32"  # of the computation; parameters and optimizer stay float32
    accumulate: Positive = 1  # parts of a batch, computed one after the other
    remat: bool = False  # the backward pass recomputes each block: slower, far less memory
    ema_decay: float = 0.0  # of an average of the parameters; 0: no average. audiocraft: 0.99
    ema_every: Positive = 1  # steps between its updates. audiocraft: 10
    # The number of classes of each frame label; see `batches.LabelledExamples`. Linear heads learn
    # to predict the labels, so the model learns the features that they need. The heads are then
    # discarded.
    label_classes: tuple[int, ...] = ()
    label_weight: float = 0.5  # of the labels' cross-entropy; the codes' has weight 1
    # A regular expression of the names of the parameters that are trained; "": all. A name is like
    # `lm.transformer.layers.0.self_attn.in_proj.weight`.
    train_only: str = ""
    lora: LoraConfig | None = None  # train only an adapter; None: train the language model itself
    seed: Natural = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.phases:
            raise ValueError("phases must have at least one")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be from 0 to below 1, got {self.ema_decay}")
        if any(w < 0 for w in self.codebook_weights) or (
            self.codebook_weights and not sum(self.codebook_weights)
        ):
            raise ValueError("codebook_weights must not be negative, nor all 0")
        if self.label_classes and (min(self.label_classes) < 2 or self.lora is not None):
            raise ValueError(
                "label_classes must each be at least 2, and cannot be combined with lora"
            )
        if self.lora is not None and not self.freeze_text:
            raise ValueError("lora trains nothing but the adapter: leave freeze_text on")
        try:
            re.compile(self.train_only)
        except re.error as error:
            raise ValueError(f"train_only is not a regular expression: {error}") from None
        for phase in self.phases:
            if phase.batch_size % self.accumulate:
                raise ValueError(
                    f"a batch of {phase.batch_size} cannot be split into {self.accumulate} equal "
                    f"parts: change batch_size or accumulate"
                )

    @property
    def steps(self) -> int:
        """Total steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """The phase that contains a step."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise ValueError("the step is beyond the last phase")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LMTrainState:
    """Everything that changes while a language model trains."""

    step: jax.Array
    # Parameters by component: "t5" and "lm"; also "lora" when an adapter is trained, "labels" for
    # the heads that predict labels, "style" for a style model's conditioner (elsewhere in "lm").
    params: Any
    optimizer: optax.OptState
    ema: Any = None  # average of the trained parameters; None: no averaging

    @property
    def averaged(self) -> Any:
        """The parameters, with averages instead of those that have one."""
        return self.params if self.ema is None else {**self.params, **self.ema.params}


# --- State --------------------------------------------------------------------------------------


def init(
    model: MusicGenConfig,
    config: LMTrainConfig,
    t5: Any = None,
    *,
    lm: Any = None,
    layout: Layout = ONE_DEVICE,
) -> LMTrainState:
    """The training state before the first step.

    Args:
      model: the architecture.
      config: how to train.
      t5: parameters of a trained text encoder (default: a new one).
      lm: initial parameters of the language model (default: new ones).
      layout: of the arrays on the devices.

    Raises:
      UserError: `model` is a style model and `lm` is missing. Its conditioner is not trained here.
    """
    if model.lm.style is not None and lm is None:
        raise UserError(
            "a style model is not trained from scratch, because its conditioner must be trained "
            "already: start from a style model with `musicgen-jax finetune`"
        )
    given = {name: part for name, part in (("t5", t5), ("lm", lm)) if part is not None}
    params = _make_params(model, config, given)
    rest = functools.partial(_make_rest, config)
    shardings = layout.state_shardings(model, abstract_state(model, config))
    if shardings is None:
        params = jax.tree.map(lambda x: jnp.array(np.asarray(x)), params)  # the step donates them
        return LMTrainState(jnp.zeros((), jnp.int32), params, *rest(trained(params, config)))
    params = jax.tree.map(place, params, shardings.params)
    out = shardings.optimizer, shardings.ema
    optimizer, average = jax.jit(rest, out_shardings=out)(trained(params, config))
    step = place(np.zeros((), np.int32), shardings.step)
    return LMTrainState(step, params, optimizer, average)


@functools.lru_cache(maxsize=4)  # a run asks three times, and each time traces the whole model
def abstract_state(
    model: MusicGenConfig, config: LMTrainConfig, layout: Layout = ONE_DEVICE
) -> LMTrainState:
    """The shapes, dtypes and shardings of the state, for `Run.restore`."""
    params = jax.eval_shape(lambda: _make_params(model, config, {}))
    rest = jax.eval_shape(lambda part: _make_rest(config, part), trained(params, config))
    abstract = LMTrainState(jax.eval_shape(lambda: jnp.int32(0)), params, *rest)
    shardings = layout.state_shardings(model, abstract)
    if shardings is None:
        return abstract
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        shardings,
    )


def _make_params(model: MusicGenConfig, config: LMTrainConfig, given: dict) -> dict:
    """All parameters. New ones are made on the host: one device may be too small for them all."""
    rngs = nnx.Rngs(config.seed)
    makers = {"t5": lambda: T5Encoder(model.t5, rngs=rngs), "lm": lambda: LM(model.lm, rngs=rngs)}
    with jax.default_device(_host()):
        params = {
            name: given.get(name) or nnx.to_pure_dict(nnx.state(make(), nnx.Param))
            for name, make in makers.items()
        }
        if model.lm.style is not None:
            params["style"] = params["lm"]["style_conditioner"]
            params["lm"] = {k: v for k, v in params["lm"].items() if k != "style_conditioner"}
        if config.lora is not None:
            params["lora"] = lora.init(model.lm, config.lora, jax.random.key(config.seed))
        if config.label_classes:
            params["labels"] = jnp.zeros((model.lm.dim, sum(config.label_classes)))
        return params


def _make_rest(config: LMTrainConfig, part: Any) -> tuple[optax.OptState, Any]:
    """The optimizer's state and the averaged parameters before the first step."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    return optimizer.init(part), ema.start(part) if config.ema_decay else None


def _host() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        return None


def trained(params: Any, config: LMTrainConfig) -> dict:
    """The parameters that training changes; the style conditioner is never among them."""
    if config.lora is not None:
        return {"lora": params["lora"]}
    frozen = {"style", "t5"} if config.freeze_text else {"style"}
    return {k: v for k, v in params.items() if k not in frozen}


# --- Loss and step ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)  # the same function again is not compiled again
def make_loss(
    model: MusicGenConfig,
    codebook_weights: tuple[float, ...] = (),
    *,
    dtype: Any = jnp.float32,
    remat: bool = False,
    layout: Layout = ONE_DEVICE,
    adapter: LoraConfig | None = None,
    label_classes: tuple[int, ...] = (),
    label_weight: float = 0.0,
) -> Callable:
    """Makes the loss: mean cross-entropy per codebook over valid positions, then over codebooks.

    Args:
      model: the architecture.
      codebook_weights: weights of the second mean; (): equal weights, as in audiocraft.
      dtype: of the computation; logits and the loss are always float32.
      remat: whether the backward pass recomputes each block instead of storing its activations.
      layout: of the arrays on the devices.
      adapter: configuration of the adapter in params["lora"] (default: no adapter).
      label_classes: see `LMTrainConfig`.
      label_weight: see `LMTrainConfig`.

    Returns:
      A function (params, batch) -> (mean float32 [], per codebook float32 [K]).
    """
    if codebook_weights and len(codebook_weights) != model.lm.n_q:
        raise UserError(
            f"codebook_weights must be {model.lm.n_q} numbers, one per codebook, "
            f"got {len(codebook_weights)}"
        )
    weights = jnp.asarray(codebook_weights or (1.0,) * model.lm.n_q)
    weights = weights / weights.sum()
    t5_shape = module_shapes(T5Encoder, model.t5)
    lm_shape = module_shapes(LM, model.lm, dtype=dtype)
    if adapter is not None:
        lora.attach(lm_shape, adapter)
    lm_shape.transformer.wrap_block = layout.around(model.lm, dtype, remat)
    t5_graph, lm_graph = nnx.split(t5_shape, nnx.Param)[0], nnx.split(lm_shape, nnx.Param)[0]

    def loss(params: dict, batch: Batch):
        t5_params = layout.gather("t5", model.t5, params["t5"], jnp.float32)
        lm_params = params["lm"]
        if adapter is not None:
            lm_params = lora.join(lm_params, params["lora"], model.lm, adapter)
        blocks = lm_params["transformer"]  # each block gathers its weights itself
        rest = {name: part for name, part in lm_params.items() if name != "transformer"}
        rest = layout.gather("lm", model.lm, rest, dtype)
        if model.lm.style is not None:
            style = {"style_conditioner": params["style"]}
            rest |= layout.gather("lm", model.lm, style, jnp.float32)
        t5 = nnx.merge(t5_graph, t5_params)
        lm = nnx.merge(lm_graph, {**rest, "transformer": blocks})
        condition = layout.rows(lm.fill_nulls(_condition(lm, t5, batch)))
        hidden = compute_hidden(lm, batch.codes, condition)
        logits, predicted = predictions_of(lm, hidden)
        if batch.counted is not None:
            predicted = predicted & batch.counted[:, None, :]
        per_codebook = codebook_cross_entropy(logits, batch.codes, predicted)
        mean = weights @ per_codebook
        if batch.labels is not None:
            labels = label_cross_entropy(hidden, params["labels"], batch.labels, label_classes)
            mean += label_weight * labels
        return mean, per_codebook

    return loss


def _condition(lm: LM, t5: T5Encoder, batch: Batch) -> Condition:
    """The condition of the language model, before null vectors are filled in."""
    text = Embedded(lm.text_conditioner(t5(batch.ids, batch.mask), batch.mask), batch.mask)
    if batch.style is not None:
        assert lm.style_conditioner is not None
        audio = lm.style_conditioner.tokens(batch.style)
    elif batch.chroma is not None:
        assert lm.chroma_conditioner is not None
        audio = lm.chroma_conditioner(batch.chroma)
    else:
        return Condition(text)
    has_audio = batch.has_audio[:, None]  # type: ignore[index]
    audio = jnp.where(has_audio[:, :, None], audio, 0)
    return Condition(text, Embedded(audio, jnp.broadcast_to(has_audio, audio.shape[:2])))


@functools.lru_cache(maxsize=4)  # a run resumed in the same process does not recompile
def make_step(
    model: MusicGenConfig, config: LMTrainConfig, layout: Layout = ONE_DEVICE
) -> Callable:
    """Makes the jitted training step.

    Args:
      model: the architecture.
      config: how to train.
      layout: of the arrays on the devices.

    Returns:
      A function (state, batch) -> (state, {"loss": [], "ce": [K], "grad_norm": []}). It donates
      the state that it receives.
    """
    loss = make_loss(
        model,
        config.codebook_weights,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        layout=layout,
        adapter=config.lora,
        label_classes=config.label_classes,
        label_weight=config.label_weight,
    )
    optimizer = make_optimizer(config.optimizer, config.steps)
    stays = layout.state_shardings(model, abstract_state(model, config))

    def gradient(params, part, batch):
        def of_trained(part):
            return loss({**params, **part}, batch)

        (mean, ce), grads = jax.value_and_grad(of_trained, has_aux=True)(part)
        if stays is not None:
            grads = jax.lax.with_sharding_constraint(grads, trained(stays.params, config))
        return grads, mean, ce

    def step(state: LMTrainState, batch: Batch):
        part = trained(state.params, config)
        if config.accumulate == 1:
            grads, mean, ce = gradient(state.params, part, batch)
        else:
            # Every part has the same number of valid positions, so the mean of their means is the
            # mean of the batch. For a style model this is only nearly true, because the loss leaves
            # out the frames of the excerpts.
            def add(total, piece):
                new = gradient(state.params, part, layout.rows(piece))
                return jax.tree.map(jnp.add, total, new), None

            pieces = _pieces(batch, config.accumulate)
            shapes = jax.eval_shape(lambda: gradient(state.params, part, _first(pieces)))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            total, _ = jax.lax.scan(add, zeros, pieces)
            grads, mean, ce = jax.tree.map(lambda x: x / config.accumulate, total)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, part)
        part = optax.apply_updates(part, _only(updates, config.train_only))
        average = state.ema
        if average is not None:
            due = (state.step + 1) % config.ema_every == 0
            average = ema.update(average, part, config.ema_decay, due)
        params = {**state.params, **part}  # type: ignore[dict-item]
        metrics = {"loss": mean, "ce": ce, "grad_norm": optax.tree.norm(grads)}
        return LMTrainState(state.step + 1, params, optimizer_state, average), metrics

    if layout.mesh is None:
        return jax.jit(step, donate_argnames="state")
    out = (stays, NamedSharding(layout.mesh, P()))
    return jax.jit(step, donate_argnames="state", out_shardings=out)


def _only(updates: Any, pattern: str) -> Any:
    """The updates of the parameters whose names match; zeros for the others."""

    def chosen(path: Any, update: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return update if re.search(pattern, name) else jnp.zeros_like(update)

    return jax.tree_util.tree_map_with_path(chosen, updates)


def _pieces(batch: Batch, count: int) -> Batch:
    """[B, ...] -> [count, B / count, ...]; piece i takes every row r with r % count == i.

    Neighbouring rows go to different pieces, so no row moves to another device.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )


def _first(pieces: Batch) -> Batch:
    return jax.tree.map(lambda x: x[0], pieces)
