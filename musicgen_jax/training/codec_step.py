"""One step of codec training: the state, and the function that updates it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

from musicgen_jax.config import EncodecConfig
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.encodec.segments import level
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.training import (
    adversarial,
    balancer,
    codebooks,
    discriminator,
    ema,
    reconstruction,
    weight_norm,
)
from musicgen_jax.training.codec_config import CodecTrainConfig
from musicgen_jax.training.optimizer import muon


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodecTrainState:
    """Everything that changes while a codec trains; fields that the settings disable are None."""

    step: jax.Array
    nets: Any  # {"encoder": ..., "decoder": ...}; see `weight_norm.split`
    optimizer: optax.OptState
    codebooks: codebooks.CodebookState
    adversary: Any = None  # parameters, as returned by `discriminator.split`
    adversary_optimizer: optax.OptState | None = None
    gradient_norms: balancer.BalancerState | None = None  # per loss, to weigh it
    average: ema.EMA | None = None  # of {"nets": ..., "embed": ...}, trained parts only


def even_share(model: EncodecConfig, config: CodecTrainConfig) -> float:
    """Number of vectors of a batch that each code would win if all codes were used equally."""
    return config.batch_size * config.segment_frames / model.bins


def start_count(model: EncodecConfig, config: CodecTrainConfig) -> float:
    """Initial win count of each code; generous, because no update has tested the codes yet."""
    return 4 * even_share(model, config)


def _schedule(config: CodecTrainConfig, learning_rate: float, steps: int) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(
        0.0 if config.warmup_steps else learning_rate,
        learning_rate,
        config.warmup_steps,
        steps,
        learning_rate * config.final_learning_rate,
    )


def _optimizer(config: CodecTrainConfig) -> optax.GradientTransformation:
    schedule = _schedule(config, config.learning_rate, config.steps - config.adversarial_warmup)
    if config.muon:
        inner = muon(schedule, config.betas, _matrices)
    else:
        inner = optax.adam(schedule, *config.betas)
    if not config.clip_norm:
        return inner
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)


def _matrices(nets: Any) -> Any:
    """Muon's view of the weights: [O, I] in LSTMs; [I, O] for each tap of a convolution."""

    def choose(path, leaf):
        if path[-1].key == "weight_g" or leaf.ndim < 2:  # lengths and biases
            return None
        inputs, outputs = (1, 0) if leaf.ndim == 2 else (1, 2)
        return contrib.MuonDimensionNumbers(inputs, outputs)

    return jax.tree_util.tree_map_with_path(choose, nets)


def _adversary_optimizer(config: CodecTrainConfig) -> optax.GradientTransformation:
    # The schedule counts the adversary's own steps: only every `adversarial_every`-th step.
    schedule = _schedule(config, config.adversarial_learning_rate, config.steps)
    return optax.adam(lambda count: schedule(count * config.adversarial_every), *config.betas)


def _trained(config: CodecTrainConfig, nets: dict) -> dict:
    return {"decoder": nets["decoder"]} if config.train_decoder_only else nets


def init(
    model: EncodecConfig, config: CodecTrainConfig, params: dict | None = None
) -> CodecTrainState:
    """The state before the first step.

    Args:
      model: the codec's architecture.
      config: how it will be trained.
      params: initial parameters with the names of Encodec (default: random ones).
    """
    if params is None:
        params = _random_params(model, config.seed)
    own = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)  # a step donates them
    return _first_state(model, config, own)


@functools.partial(jax.jit, static_argnames=("model", "seed"))
def _random_params(model: EncodecConfig, seed: int) -> dict:
    encodec = Encodec(model, rngs=nnx.Rngs(seed))
    return nnx.to_pure_dict(nnx.state(encodec, nnx.Param))


# One program: operation by operation, this would compile a hundred.
@functools.partial(jax.jit, static_argnames=("model", "config"))
def _first_state(model: EncodecConfig, config: CodecTrainConfig, own: Any) -> CodecTrainState:
    nets = {"encoder": own["encoder"], "decoder": own["decoder"]}
    if config.weight_norm:
        # Frozen weights stay unsplit: splitting and folding would round them.
        nets |= weight_norm.split(_trained(config, nets), weight_norm.encodec_axes(model))
    embed = own["quantizer"]["embed"]
    state = CodecTrainState(
        step=jnp.zeros((), jnp.int32),
        nets=nets,
        optimizer=_optimizer(config).init(_trained(config, nets)),
        codebooks=codebooks.start(embed, start_count(model, config)),
    )
    if config.adversarial:
        network = discriminator.MultiScaleSTFTDiscriminator(
            config.discriminator, model.channels, rngs=nnx.Rngs(config.seed + 1)
        )
        plain = nnx.to_pure_dict(nnx.state(network, nnx.Param))
        adversary = discriminator.split(plain, config.discriminator)
        state = dataclasses.replace(
            state,
            adversary=adversary,
            adversary_optimizer=_adversary_optimizer(config).init(adversary),
        )
    if config.balancer.balance_grads:
        start = balancer.BalancerState.start(config.losses.active)
        state = dataclasses.replace(state, gradient_norms=start)
    if config.ema_decay:
        state = dataclasses.replace(state, average=ema.start(_averaged(config, state)))
    return state


def _averaged(config: CodecTrainConfig, state: CodecTrainState) -> dict:
    """The parameters to average: all trained ones."""
    nets = {"nets": _trained(config, state.nets)}
    return nets if config.train_decoder_only else {**nets, "embed": state.codebooks.embed}


def codec_params(state: CodecTrainState) -> dict:
    """The codec's parameters with the names of Encodec, averaged where an average exists."""
    nets, embed = state.nets, state.codebooks.embed
    if state.average is not None:
        nets = {**nets, **state.average.params["nets"]}
        embed = state.average.params.get("embed", embed)
    return {**weight_norm.fold(nets), "quantizer": {"embed": embed}}


def _forward(nets, frozen, embed, audio, num_books, graphdef, model: EncodecConfig, quantize: bool):
    """Encodes and decodes audio.

    Args:
      nets: the trained networks.
      frozen: the other networks.
      embed: the codebooks.
      audio: [B, C, W].
      num_books: number of codebooks in use.
      graphdef: of the codec.
      model: the codec's architecture.
      quantize: whether to quantize the latents; False passes them through.

    Returns:
      ((decoded audio, commitment), (latents, codes)); the codebooks learn from the second pair.
    """
    folded = weight_norm.fold({**frozen, **nets})
    codec = nnx.merge(graphdef, {**folded, "quantizer": {"embed": embed}})
    scale = level(audio)[:, None, None] if model.normalize else jnp.ones(())
    latents = codec.encoder((audio / scale).swapaxes(1, 2))  # [B, T, D]
    if quantize:
        rounded = codebooks.quantize(codec.quantizer, latents, num_books)
        decoded = codec.decoder(rounded.latents)
        commitment, codes = rounded.commitment, rounded.codes
    else:
        decoded, codes = codec.decoder(latents), None
        commitment = jnp.square(latents).mean()
    return (decoded.swapaxes(1, 2) * scale, commitment), (jax.lax.stop_gradient(latents), codes)


@functools.lru_cache(maxsize=4)  # a run resumed in the same process does not recompile
def make_step(model: EncodecConfig, config: CodecTrainConfig) -> Callable:
    """The jitted training step (state, audio, quantize, teach, alone=False) -> (state, metrics).

    `audio` is [B, C, W]. `quantize` says whether the codebooks are in use yet, `teach` whether the
    adversary learns too, and `alone` whether only the adversary learns. These flags are static and
    select separate programs. A branch inside one program would keep XLA's CPU backend from running
    convolutions on all cores.

    Each metric is float32 [], except `histogram`, int32 [K, bins], which counts how often each code
    was chosen. `loss` is the loss that the codec's weights minimise.

    Args:
      model: the codec's architecture.
      config: how to train.
    """
    graphdef, _ = nnx.split(module_shapes(Encodec, model), nnx.Param)
    judge_graph, _ = nnx.split(
        module_shapes(
            discriminator.MultiScaleSTFTDiscriminator, config.discriminator, model.channels
        ),
        nnx.Param,
    )
    optimizer, adversary_optimizer = _optimizer(config), _adversary_optimizer(config)
    weights, kind = config.losses.active, config.adversarial_loss
    known = reconstruction.losses(model.sample_rate, config.windows)
    waveform_losses = {name: known[name] for name in weights if name in known}

    def judge(adversary, audio):
        return nnx.merge(judge_graph, weight_norm.fold(adversary))(audio)

    def taught(adversary, opt_state, output, audio):
        """One training step of the adversary."""

        def loss(adversary):
            fake, real = judge(adversary, output)[0], judge(adversary, audio)[0]
            return adversarial.discriminator_loss(kind, fake, real)

        value, grads = jax.value_and_grad(loss)(adversary)
        updates, opt_state = adversary_optimizer.update(grads, opt_state, adversary)
        return optax.apply_updates(adversary, updates), opt_state, value

    def verdict(adversary, output, audio):
        """The adversarial losses and their gradients with respect to the output."""
        real = judge(adversary, audio)[1]

        def losses(output):
            logits, maps = judge(adversary, output)
            return (
                adversarial.generator_loss(kind, logits),
                adversarial.feature_matching_loss(maps, real),
            )

        (adv, feat), back = jax.vjp(losses, output)
        one, zero = jnp.ones(()), jnp.zeros(())
        values = {"adv": adv, "feat": feat}
        grads = {"adv": back((one, zero))[0], "feat": back((zero, one))[0]}
        return ({k: tree[k] for k in tree if k in weights} for tree in (values, grads))

    static = "quantize", "teach", "alone"

    @functools.partial(jax.jit, static_argnames=static, donate_argnames="state")
    def step(
        state: CodecTrainState, audio: jax.Array, quantize: bool, teach: bool, alone: bool = False
    ):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        num_books = model.n_q
        if config.q_dropout and quantize:
            draw = jax.random.fold_in(key, model.n_q)  # the codebooks use the numbers below n_q
            num_books = jax.random.randint(draw, (), 1, model.n_q + 1)
        nets = _trained(config, state.nets)
        frozen = {name: net for name, net in state.nets.items() if name not in nets}
        (output, commitment), back, (latents, codes) = jax.vjp(
            lambda nets: _forward(
                nets, frozen, state.codebooks.embed, audio, num_books, graphdef, model, quantize
            ),
            nets,
            has_aux=True,
        )

        metrics, adversary, adversary_opt = {}, state.adversary, state.adversary_optimizer
        losses, grads = {}, {}
        if config.adversarial:
            if teach:
                adversary, adversary_opt, metrics["d_loss"] = taught(
                    adversary, adversary_opt, output, audio
                )
            if alone:
                learned = {"adversary": adversary, "adversary_optimizer": adversary_opt}
                return dataclasses.replace(state, step=state.step + 1, **learned), metrics
            losses, grads = verdict(adversary, output, audio)
        for name, function in waveform_losses.items():
            losses[name], grads[name] = jax.value_and_grad(function)(output, audio)
        gradient, norms, ratios = balancer.combine(
            config.balancer,
            state.gradient_norms or balancer.BalancerState.start(weights),
            weights,
            losses,
            grads,
        )

        def penalty(commitment):
            if not quantize:
                # This only keeps the scale of the latents bounded.
                return 1e-3 * config.commitment_weight * commitment
            return config.commitment_weight * codebooks.commitment_loss(
                commitment, num_books, config.commitment_books
            )

        penalty_value, penalty_gradient = jax.value_and_grad(penalty)(commitment)
        (net_grads,) = back((gradient, penalty_gradient))
        updates, opt_state = optimizer.update(net_grads, state.optimizer, nets)
        moved: Any = optax.apply_updates(nets, updates)
        nets = {**frozen, **moved}

        books = state.codebooks
        if quantize:
            chosen: Any = codes
            flat = chosen.swapaxes(1, 2).reshape(-1, model.n_q)
            one = jnp.ones(len(flat), jnp.int32)
            metrics["histogram"] = jnp.stack(
                [jax.ops.segment_sum(one, flat[:, k], model.bins) for k in range(model.n_q)]
            )
            if not config.train_decoder_only:
                books = codebooks.update(
                    books,
                    latents.reshape(-1, latents.shape[-1]),
                    flat,
                    key,
                    decay=config.codebook_decay,
                    dead_below=config.dead_below * even_share(model, config),
                    num_books=num_books,
                )
        metrics |= {**losses, **ratios, "penalty": penalty_value}
        metrics["loss"] = ratios["g_loss"] + penalty_value
        metrics["gradient_norm"] = optax.tree.norm(net_grads)
        new = CodecTrainState(
            state.step + 1,
            nets,
            opt_state,
            books,
            adversary,
            adversary_opt,
            norms if config.balancer.balance_grads else None,
        )
        if state.average is not None:
            average = ema.update(state.average, _averaged(config, new), config.ema_decay)
            new = dataclasses.replace(new, average=average)
        return new, metrics

    return step
