"""One step of codec training: the state that it changes and the function that does."""

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
    """Everything that changes while a codec trains; what its settings do without is None."""

    step: jax.Array
    nets: Any  # {"encoder": ..., "decoder": ...}, with weight_norm in direction and length
    optimizer: optax.OptState
    codebooks: codebooks.CodebookState
    adversary: Any = None  # parameters, as `discriminator.split` makes them
    adversary_optimizer: optax.OptState | None = None
    gradient_norms: balancer.BalancerState | None = None  # of each loss, for its weight
    average: ema.EMA | None = None  # of {"nets": ..., "embed": ...}, or of what is trained of it


def even_share(model: EncodecConfig, config: CodecTrainConfig) -> float:
    """Vectors of a batch that each code would win, if all won alike."""
    return config.batch_size * config.segment_frames / model.bins


def start_count(model: EncodecConfig, config: CodecTrainConfig) -> float:
    """Wins that codes are credited with at first: generous, for no update has shown them yet."""
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
    """How Muon sees a codec's weights: [O, I] of LSTMs; [I, O] of each tap of a convolution."""

    def choose(path, leaf):
        if path[-1].key == "weight_g" or leaf.ndim < 2:  # lengths and biases
            return None
        inputs, outputs = (1, 0) if leaf.ndim == 2 else (1, 2)
        return contrib.MuonDimensionNumbers(inputs, outputs)

    return jax.tree_util.tree_map_with_path(choose, nets)


def _adversary_optimizer(config: CodecTrainConfig) -> optax.GradientTransformation:
    # Its schedule counts its own steps: with `adversarial_every` it sees only a share of them.
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
      params: of a codec to go on from, as Encodec names them; None draws new ones.
    """
    if params is None:
        encodec = Encodec(model, rngs=nnx.Rngs(config.seed))
        params = nnx.to_pure_dict(nnx.state(encodec, nnx.Param))
    own: Any = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
    nets = {"encoder": own["encoder"], "decoder": own["decoder"]}
    if config.weight_norm:
        # What is frozen stays as it is: splitting and folding would round it.
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
    """What takes part in the average: all that is trained."""
    nets = {"nets": _trained(config, state.nets)}
    return nets if config.train_decoder_only else {**nets, "embed": state.codebooks.embed}


def codec_params(state: CodecTrainState) -> dict:
    """The codec's parameters as Encodec names them: the averaged ones where there are such."""
    nets, embed = state.nets, state.codebooks.embed
    if state.average is not None:
        nets = {**nets, **state.average.params["nets"]}
        embed = state.average.params.get("embed", embed)
    return {**weight_norm.fold(nets), "quantizer": {"embed": embed}}


def _forward(nets, frozen, embed, audio, num_books, graphdef, model: EncodecConfig, quantize: bool):
    """Decoded audio, the penalty's parts, and what the codebooks learn from.

    Args:
      nets: what is trained.
      frozen: the other nets.
      embed: the codebooks.
      audio: [B, C, W].
      num_books: how many books are in use.
      graphdef: of the codec.
      model: its architecture.
      quantize: False lets the latents through.
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


@functools.lru_cache(maxsize=4)  # a run that goes on in the same process is not compiled again
def make_step(model: EncodecConfig, config: CodecTrainConfig) -> Callable:
    """The jitted training step (state, audio, quantize, teach, alone=False) -> (state, metrics).

    `audio` is [B, C, W]; `quantize` says whether the codebooks are in use yet, `teach` whether the
    adversary learns too, `alone` whether nothing else does. They are static: plain programs, where
    a branch inside of one would keep XLA's CPU backend from running convolutions on all cores.

    The metrics are float32 [] each, but for `histogram`, int32 [K, bins]: how often each code was
    chosen. `loss` is what the codec's weights follow.
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
        """A step of the adversary."""

        def loss(adversary):
            fake, real = judge(adversary, output)[0], judge(adversary, audio)[0]
            return adversarial.discriminator_loss(kind, fake, real)

        value, grads = jax.value_and_grad(loss)(adversary)
        updates, opt_state = adversary_optimizer.update(grads, opt_state, adversary)
        return optax.apply_updates(adversary, updates), opt_state, value

    def verdict(adversary, output, audio):
        """Losses of the adversary's and their gradients with respect to the output."""
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
            draw = jax.random.fold_in(key, model.n_q)  # the books take the numbers below
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
                # Only keeps the latents' scale within reach.
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
