"""Training of the codec: reconstruct the waveform through codes that stay in use.

A new codec may train its first steps without the quantizer (`unquantized_steps`), so that k-means
finds latents worth coding. After that, gradients pass straight through the quantizer, and the
codebooks follow the latents by moving averages. `train_decoder_only` improves the decoder of a
trained codec without changing the meaning of its codes:

    config = codec_settings.DECODER_TRAINING
    state = train(CODEC, config, clips, params=codec)  # clips: float [N, W] at the codec's rate
    better = codec_params(state)  # same as `codec`, but with a new decoder
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from musicgen_jax.config import EncodecConfig
from musicgen_jax.console import Bar, plain
from musicgen_jax.errors import UserError
from musicgen_jax.nn.encodec import Encodec
from musicgen_jax.nn.encodec.segments import level
from musicgen_jax.nn.shapes import module_shapes
from musicgen_jax.training import codebooks, reconstruction
from musicgen_jax.training.batches import place, prefetch
from musicgen_jax.training.codec_config import CodecTrainConfig
from musicgen_jax.training.codec_step import (
    CodecTrainState,
    codec_params,
    init,
    make_step,
    start_count,
)
from musicgen_jax.training.lm_loop import rounded

__all__ = [
    "CodecTrainConfig",
    "CodecTrainState",
    "codec_params",
    "evaluate",
    "init",
    "make_step",
    "train",
]


class Clips(Protocol):
    """A source of training audio."""

    def segment(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        """Draws a random segment, float32 [C, samples]; it depends only on the state of `rng`."""
        ...


# Receives a state and its score, and saves it or starts to; the lowest score is the best.
Save = Callable[[CodecTrainState, float | None], None]


def segments(
    clips: Clips | np.ndarray,
    hop: int,
    config: CodecTrainConfig,
    start: int,
    mesh: Mesh | None = None,
) -> Iterator[tuple[int, np.ndarray | jax.Array]]:
    """Yields (step, batch) with batches float32 [B, C, W] of random segments.

    The batch of a step depends only on the seed and the step.

    Args:
      clips: a source of segments, or an array [N, W] or [N, C, W] to cut on frame boundaries.
      hop: samples per frame.
      config: how to train.
      start: the first step.
      mesh: of devices over which batches are spread (default: one device).
    """
    length = config.segment_frames * hop

    def make(rows: range, step: int) -> np.ndarray:
        if not isinstance(clips, np.ndarray):
            draws = [np.random.default_rng((config.seed, step, row)) for row in rows]
            return np.stack([clips.segment(rng, length) for rng in draws]).astype(np.float32)
        rng = np.random.default_rng((config.seed, step))
        which = rng.integers(len(clips), size=config.batch_size)
        places = (clips.shape[-1] - length) // hop + 1
        offsets = rng.integers(places, size=config.batch_size) * hop
        cuts = [clips[which[row], ..., offsets[row] : offsets[row] + length] for row in rows]
        audio = np.stack(cuts).astype(np.float32)
        return audio[:, None] if audio.ndim == 2 else audio

    for step in range(start, config.steps):
        yield step, place(lambda rows, step=step: make(rows, step), config.batch_size, mesh)


def train(
    model: EncodecConfig,
    config: CodecTrainConfig,
    clips: Clips | np.ndarray,
    *,
    params: dict | None = None,
    state: CodecTrainState | None = None,
    log: Callable[[dict], None] = lambda record: None,
    save: Save = lambda state, score: None,
    every: int = 50,
    save_every: int = 500,
    held_out: np.ndarray | None = None,
    mesh: Mesh | None = None,
    bar: Bar = plain,
) -> CodecTrainState:
    """Trains a codec on `clips` and returns the final state.

    Args:
      model: the codec's architecture.
      config: how to train.
      clips: waveforms at `model.sample_rate`, of any float type, [N, W] (mono) or [N, C, W]; or a
        source of segments.
      params: initial parameters of the codec (default: random ones). With `train_decoder_only` the
        encoder and the codebooks of the result are bit-identical to these.
      state: the state to resume from, instead of `params` (default: a new one).
      log: receives a record every `every` steps: means over the steps since the last record or
        saved state. So a run that resumes from a saved state repeats its records.
      save: receives the state every `save_every` steps and at the end, after all records up to it.
        The score is the `msspec` of the held-out clips.
      every: steps between log records.
      save_every: steps between saves.
      held_out: clips float [N, C, W] that are evaluated and logged before every save.
      mesh: of devices over which batches are spread (default: one device).
      bar: wraps the iteration over steps.

    Raises:
      UserError: the segments are too long for the clips or too short for the spectrograms, or the
        loss or the gradient is not finite; earlier saved states are good.
    """
    _check(model, config, clips, new=params is None and state is None)
    now = init(model, config, params) if state is None else state
    if mesh is not None:
        now = jax.device_put(now, NamedSharding(mesh, PartitionSpec()))
    step_fn = make_step(model, config)
    recent, began = collections.defaultdict(list), time.monotonic()
    learn_books = config.kmeans_init and not config.train_decoder_only
    unquantized = config.unquantized_steps if learn_books else 0
    source = prefetch(segments(clips, model.hop_length, config, int(now.step), mesh))
    begun = {"total": config.steps, "initial": int(now.step)}
    for step, batch in bar(source, **begun, desc="training", unit="step"):
        if step == unquantized and learn_books:
            now = _with_new_codebooks(model, config, now, clips)
        alone = step < config.adversarial_warmup
        teach = alone or step % config.adversarial_every == 0
        now, metrics = step_fn(now, batch, step >= unquantized, teach, alone)
        for name, value in metrics.items():
            recent[name].append(value)
        done = step + 1
        saving = done % save_every == 0 or done == config.steps
        if done % every == 0 or saving:
            means = _means(jax.device_get(dict(recent)))
            recent.clear()
            log({"step": done, "seconds": round(time.monotonic() - began, 1), **means})
            if bad := [name for name, value in means.items() if not math.isfinite(value)]:
                raise UserError(f"{bad[0]} is {means[bad[0]]} by step {done}: stopped")
        if saving:
            scores = {}
            if held_out is not None:
                found = evaluate(model, codec_params(now), held_out)
                scores = {f"valid {name}": rounded(value) for name, value in found.items()}
                log({"step": done, **scores})
            save(now, scores.get("valid msspec"))
    return now


def _means(recent: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """Means over the steps since the last record, and how evenly the codes were used."""
    histograms = recent.pop("histogram", None)
    means = {name: rounded(np.mean(values)) for name, values in recent.items()}
    if histograms is not None:
        used = codebooks.usage(np.sum(histograms, axis=0))
        means |= {name: rounded(value) for name, value in used.items()}
    return means


def _check(model: EncodecConfig, config: CodecTrainConfig, clips, *, new: bool) -> None:
    length = config.segment_frames * model.hop_length
    if isinstance(clips, np.ndarray) and (not clips.size or clips.shape[-1] < length):
        raise UserError(
            f"segments of {length} samples do not fit in clips {clips.shape}: lower segment_frames"
        )
    longest = max(config.discriminator.n_ffts) if config.adversarial else 0
    if config.losses.msspec or config.losses.mel:
        longest = max(longest, 1024)
    if length < longest:
        frames = -(-longest // model.hop_length)
        raise UserError(f"segments must fill a window of {longest}: segment_frames >= {frames}")
    if config.train_decoder_only and new:
        raise UserError("train_decoder_only needs a codec whose decoder it can train")


def evaluate(
    model: EncodecConfig, params: dict, audio: np.ndarray, *, batch_size: int = 8
) -> dict[str, float]:
    """Measures how well a codec reconstructs clips.

    Args:
      model: the codec's architecture.
      params: its parameters, with the names of Encodec.
      audio: float [N, C, W]; W is a multiple of the hop length.
      batch_size: clips per call.

    Returns:
      `si_snr` in dB (higher is better); `mel`, the mean difference of mel bands in factors of ten;
      `msspec` and `l1`, the losses of those names; and the usage, entropy and perplexity of each
      codebook.
    """
    totals, histogram, count = collections.Counter(), np.zeros((model.n_q, model.bins)), 0
    for start in range(0, len(audio), batch_size):
        batch = np.asarray(audio[start : start + batch_size], np.float32)
        values, codes = jax.device_get(_reconstruct(params, batch, model))
        totals.update({name: float(value) * len(batch) for name, value in values.items()})
        count += len(batch)
        for k in range(model.n_q):
            histogram[k] += np.bincount(codes[:, k].reshape(-1), minlength=model.bins)
    return {**{name: v / count for name, v in totals.items()}, **codebooks.usage(histogram)}


@jax.jit(static_argnames="model")
def _reconstruct(params: dict, audio: jax.Array, model: EncodecConfig):
    graphdef, _ = nnx.split(module_shapes(Encodec, model), nnx.Param)
    codec = nnx.merge(graphdef, params)
    scale = level(audio)[:, None, None] if model.normalize else jnp.ones(())
    codes = codec.encode(audio / scale)
    output = (codec.decode(codes) * scale)[:, :, : audio.shape[2]]
    known = reconstruction.losses(model.sample_rate, ())
    values = {name: known[name](output, audio) for name in ("l1", "mel", "msspec")}
    values["si_snr"] = -reconstruction.si_snr_loss(output, audio, model.sample_rate)
    return values, codes


def _with_new_codebooks(
    model: EncodecConfig, config: CodecTrainConfig, state: CodecTrainState, clips
) -> CodecTrainState:
    """Replaces the codebooks by residual k-means of the latents of some segments."""
    books = codebooks.kmeans(
        _latents(model, state, clips, config),
        model.n_q,
        model.bins,
        rounds=config.kmeans_rounds,
        seed=config.seed,
        count=start_count(model, config),
    )
    books = jax.tree.map(_placed_like, books, state.codebooks)
    if state.average is not None:  # averaging with the old codebooks would be meaningless
        params = {**state.average.params, "embed": books.embed.copy()}
        state = dataclasses.replace(
            state, average=dataclasses.replace(state.average, params=params)
        )
    return dataclasses.replace(state, codebooks=books)


def _placed_like(new: jax.Array, old: jax.Array) -> jax.Array:
    """Tied to devices only if the old array is: otherwise the step would be compiled again."""
    return jax.device_put(new, old.sharding if old.committed else None)


def _latents(model: EncodecConfig, state: CodecTrainState, clips, config) -> np.ndarray:
    """Latents of some segments, [N, D]; N is at least sixteen times the number of codes."""
    graphdef, _ = nnx.split(module_shapes(Encodec, model), nnx.Param)
    nets = codec_params(dataclasses.replace(state, average=None))

    @jax.jit
    def encode(params, audio):
        scale = level(audio)[:, None, None] if model.normalize else jnp.ones(())
        return nnx.merge(graphdef, params).encoder((audio / scale).swapaxes(1, 2))

    frames = config.batch_size * config.segment_frames
    draw = dataclasses.replace(
        config,
        steps=-(-16 * model.bins // frames),
        warmup_steps=0,
        adversarial_warmup=0,
        seed=config.seed + 1,
    )
    sampler = segments(clips, model.hop_length, draw, 0)
    return np.concatenate(
        [np.asarray(encode(nets, audio)).reshape(-1, model.dimension) for _, audio in sampler]
    )
