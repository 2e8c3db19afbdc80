"""Training of the codec: reconstruct the waveform through codes that stay in use.

The first `unquantized_steps` run without the quantizer, so that k-means finds latents worth coding;
then gradients pass the quantizer straight through and the codebooks follow by moving averages.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from musicgen_jax.config import EncodecConfig
from musicgen_jax.encodec import Encodec
from musicgen_jax.training import codebooks
from musicgen_jax.training.losses import spectral_loss


@dataclasses.dataclass(frozen=True)
class CodecTrainConfig:
    """How a codec is trained; the defaults are those of the bundled model."""

    steps: int = 3000
    unquantized_steps: int = 600
    batch_size: int = 8
    segment_frames: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    final_learning_rate: float = 0.02  # as a fraction of `learning_rate`
    clip_norm: float = 1.0
    windows: tuple[int, ...] = (2048, 1024, 512, 256)
    waveform_weight: float = 1.0
    spectral_weight: float = 1.0
    commitment_weight: float = 0.25
    codebook_decay: float = 0.99
    dead_below: float = 0.02
    seed: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodecTrainState:
    """Everything that changes while a codec trains."""

    step: jax.Array
    nets: Any  # {"encoder": ..., "decoder": ...}
    optimizer: optax.OptState
    codebooks: codebooks.CodebookState


def _optimizer(config: CodecTrainConfig) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        config.warmup_steps,
        config.steps,
        config.learning_rate * config.final_learning_rate,
    )
    # Small betas, as codecs are usually trained: the loss surface moves with the codebooks.
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(schedule, 0.8, 0.99))


def init(model: EncodecConfig, config: CodecTrainConfig) -> CodecTrainState:
    """A new codec before its first step."""
    params = nnx.to_pure_dict(nnx.state(Encodec(model, rngs=nnx.Rngs(config.seed)), nnx.Param))
    nets = {"encoder": params["encoder"], "decoder": params["decoder"]}
    embed = params["quantizer"]["embed"]
    books = codebooks.CodebookState(embed, jnp.ones(embed.shape[:2]), embed.copy())
    return CodecTrainState(jnp.zeros((), jnp.int32), nets, _optimizer(config).init(nets), books)


def codec_params(state: CodecTrainState) -> dict:
    """The codec's parameters as Encodec names them."""
    return {**state.nets, "quantizer": {"embed": state.codebooks.embed}}


def _loss(nets, books, audio, graphdef, model: EncodecConfig, config, quantize: bool):
    codec = nnx.merge(graphdef, {**nets, "quantizer": {"embed": books.embed}})
    latents = codec.encoder(audio[:, :, None])  # [B, T, D]
    flat = latents.reshape(-1, latents.shape[-1])
    if quantize:
        fixed = jax.lax.stop_gradient(latents)
        codes = codec.quantizer.encode(fixed)  # [B, K, T]
        quantized = codec.quantizer.decode(codes)
        commitment = jnp.mean((latents - quantized) ** 2)
        decoded = codec.decoder(latents + jax.lax.stop_gradient(quantized - latents))
        codes = codes.swapaxes(1, 2).reshape(-1, model.n_q)
    else:
        codes = jnp.zeros((flat.shape[0], model.n_q), jnp.int32)
        commitment = 1e-3 * jnp.mean(latents**2)  # keeps the latents' scale within reach
        decoded = codec.decoder(latents)
    output = decoded[:, :, 0]
    waveform = jnp.abs(audio - output).mean() / (jnp.abs(audio).mean() + 0.01)
    spectral = spectral_loss(audio, output, model.sample_rate, config.windows)
    loss = (
        config.waveform_weight * waveform
        + config.spectral_weight * spectral
        + config.commitment_weight * commitment
    )
    metrics = {"loss": loss, "waveform": waveform, "spectral": spectral, "commitment": commitment}
    return loss, (metrics, jax.lax.stop_gradient(flat), codes)


def make_step(model: EncodecConfig, config: CodecTrainConfig) -> Callable:
    """The jitted training step (state, audio [B, W], quantize: bool) -> (state, metrics)."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Encodec(model, rngs=nnx.Rngs(0))), nnx.Param)
    optimizer = _optimizer(config)

    @functools.partial(jax.jit, static_argnames="quantize", donate_argnames="state")
    def step(state: CodecTrainState, audio: jax.Array, quantize: bool):
        gradient = jax.value_and_grad(_loss, has_aux=True)
        (_, (metrics, latents, codes)), grads = gradient(
            state.nets, state.codebooks, audio, graphdef, model, config, quantize
        )
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.nets)
        books = state.codebooks
        if quantize:
            key = jax.random.fold_in(jax.random.key(config.seed), state.step)
            books = codebooks.update(
                books,
                latents,
                codes,
                key,
                decay=config.codebook_decay,
                dead_below=config.dead_below,
            )
        nets = optax.apply_updates(state.nets, updates)
        return CodecTrainState(state.step + 1, nets, optimizer_state, books), metrics

    return step


def segments(clips: np.ndarray, hop: int, config: CodecTrainConfig, start: int) -> Iterator:
    """Random segments of `clips` [N, W], cut on frame boundaries; the i-th depends on i alone."""
    length = config.segment_frames * hop
    for step in range(start, config.steps):
        rng = np.random.default_rng((config.seed, step))
        rows = rng.integers(len(clips), size=config.batch_size)
        offsets = rng.integers((clips.shape[1] - length) // hop + 1, size=config.batch_size) * hop
        batch = [clips[row, at : at + length] for row, at in zip(rows, offsets, strict=True)]
        yield step, np.stack(batch).astype(np.float32)


def train(
    model: EncodecConfig,
    config: CodecTrainConfig,
    clips: np.ndarray,
    *,
    state: CodecTrainState | None = None,
    log: Callable[[dict], None] = lambda record: None,
    save: Callable[[CodecTrainState], None] = lambda state: None,
    every: int = 50,
    save_every: int = 500,
) -> CodecTrainState:
    """Trains a codec on `clips` and returns the final state.

    Args:
      model: the codec's architecture (mono).
      config: how to train.
      clips: float [N, W] waveforms at `model.sample_rate`.
      state: where to go on from; None starts anew.
      log: receives a dict of mean metrics every `every` steps.
      save: receives the state every `save_every` steps and at the end.
      every: steps between log records.
      save_every: steps between saves.
    """
    now = init(model, config) if state is None else state
    step_fn = make_step(model, config)
    recent, began = collections.defaultdict(list), time.monotonic()
    for step, audio in segments(clips, model.hop_length, config, int(now.step)):
        if step == config.unquantized_steps:
            latents = _latents(model, now, clips, config)
            books = codebooks.kmeans(latents, model.n_q, model.bins, seed=config.seed)
            now = dataclasses.replace(now, codebooks=books)
        now, metrics = step_fn(now, audio, step >= config.unquantized_steps)
        for name, value in metrics.items():
            recent[name].append(value)
        if (step + 1) % every == 0:
            means = {name: float(np.mean(jax.device_get(v))) for name, v in recent.items()}
            log({"step": step + 1, "seconds": round(time.monotonic() - began, 1), **means})
            recent.clear()
        if (step + 1) % save_every == 0 or step + 1 == config.steps:
            save(now)
    return now


def _latents(model: EncodecConfig, state: CodecTrainState, clips, config) -> np.ndarray:
    """Latents of some segments, [N, D], at least sixteen for every code."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Encodec(model, rngs=nnx.Rngs(0))), nnx.Param)
    encode = jax.jit(lambda params, audio: nnx.merge(graphdef, params).encoder(audio[:, :, None]))
    frames = config.batch_size * config.segment_frames
    batches = -(-16 * model.bins // frames)
    sampler = segments(
        clips, model.hop_length, dataclasses.replace(config, steps=batches, seed=config.seed + 1), 0
    )
    params = codec_params(state)
    return np.concatenate(
        [np.asarray(encode(params, audio)).reshape(-1, model.dimension) for _, audio in sampler]
    )
