"""The training loop of a language model: it takes batches and emits records and states."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from musicgen_jax.config import MusicGenConfig
from musicgen_jax.console import Bar, plain
from musicgen_jax.errors import UserError
from musicgen_jax.training.batch import Batch
from musicgen_jax.training.batches import (
    Examples,
    LabelledExamples,
    LabelledMelodyExamples,
    MelodyExamples,
    StyleExamples,
    Tokenize,
    draw,
    melody_shape,
    place,
    prefetch,
)
from musicgen_jax.training.layout import Layout
from musicgen_jax.training.lm import ONE_DEVICE, LMTrainConfig, LMTrainState, init, make_step
from musicgen_jax.training.optimizer import make_schedule
from musicgen_jax.training.records import Log

AnyExamples = Examples | MelodyExamples | StyleExamples | LabelledExamples | LabelledMelodyExamples


# Receives a state and its score, and saves it or starts to; the lowest score is the best.
Save = Callable[[LMTrainState, float | None], None]


def batches(
    examples: AnyExamples,
    tokenize: Tokenize,
    config: LMTrainConfig,
    start: int,
    *,
    chroma_shape: tuple[int, int] | None = None,
    styled: bool = False,
    layout: Layout = ONE_DEVICE,
) -> Iterator[tuple[int, Batch]]:
    """Yields (step, batch) from step `start` on.

    The batch of a step depends only on the seed and the step; see `batches.draw`.

    Args:
      examples: see `train`.
      tokenize: see `train`.
      config: how to train.
      start: the first step.
      chroma_shape: shape of a melody model's chroma; see `batches.melody_shape`.
      styled: whether to draw styles, for a style model.
      layout: of the arrays on the devices.

    Raises:
      UserError: a batch does not divide evenly over the mesh.
    """
    for phase in config.phases:
        layout.check_batch(phase.batch_size // config.accumulate)
    for step in range(start, config.steps):
        phase = config.phase_at(step)

        def make(rows: range, step: int = step, frames: int = phase.frames) -> Batch:
            seed = config.seed, step
            return draw(
                examples,
                tokenize,
                config.dropout,
                seed,
                rows,
                frames,
                chroma_shape=chroma_shape,
                styled=styled,
                labelled=bool(config.label_classes),
            )

        yield step, place(make, phase.batch_size, layout.mesh)


def train(
    model: MusicGenConfig,
    config: LMTrainConfig,
    examples: AnyExamples,
    tokenize: Tokenize,
    *,
    state: LMTrainState | None = None,
    layout: Layout = ONE_DEVICE,
    log: Log = lambda record: None,
    save: Save = lambda state, score: None,
    evaluate: Callable[[Any], dict] = lambda params: {},
    after: Callable[[int, LMTrainState], None] = lambda step, state: None,
    every: int = 25,
    save_every: int = 100,
    bar: Bar = plain,
) -> LMTrainState:
    """Trains a language model and returns the final state.

    A record covers the steps since the last record or saved state. So a run that resumes from a
    saved state repeats its records exactly.

    Args:
      model: the architecture.
      config: how to train.
      examples: `Examples`; `MelodyExamples` for a melody model, `StyleExamples` for a style model;
        for training with labels, `LabelledExamples` or `LabelledMelodyExamples`.
      tokenize: prompts to (ids [B, L], mask [B, L]) of one fixed L.
      state: the state to resume from (default: a new one).
      layout: of the arrays on the devices.
      log: receives a record every `every` steps: means over the steps since the last record.
      save: receives the state every `save_every` steps and at the end, after all records up to it.
        The score is `evaluate`'s "valid", of the averaged parameters if there are any.
      evaluate: maps parameters to figures, which are logged before every save. If there are
        averaged parameters, it is called a second time with them.
      after: called after every step with the number of steps done and the state.
      every: steps between log records.
      save_every: steps between saves.
      bar: wraps the iteration over steps.

    Raises:
      UserError: the loss or the gradient is not finite; earlier saved states are good.
    """
    now = init(model, config, layout=layout) if state is None else state
    step_fn = make_step(model, config, layout)
    window = _Window(model, config)
    source = batches(
        examples,
        tokenize,
        config,
        int(now.step),
        chroma_shape=melody_shape(model),
        styled=model.lm.style is not None,
        layout=layout,
    )
    begun = {"total": config.steps, "initial": int(now.step)}
    for step, batch in bar(prefetch(source), **begun, desc="training", unit="step"):
        now, metrics = step_fn(now, batch)
        window.add(step, batch.codes.size, metrics)
        done, last = step + 1, step + 1 == config.steps
        saving = done % save_every == 0 or last
        if done % every == 0 or saving:
            record = window.record()
            log(record)
            if bad := [name for name, value in record.items() if not math.isfinite(value)]:
                raise UserError(f"{bad[0]} is {record[bad[0]]} at step {record['step']}: stopped")
        if saving:
            figures = {k: rounded(v) for k, v in evaluate(now.params).items()}
            if now.ema is not None:
                averaged = evaluate(now.averaged)
                figures |= {f"ema {k}": rounded(v) for k, v in averaged.items()}
            if figures:
                log({"step": done, **figures})
            save(now, figures.get("ema valid", figures.get("valid")))
            window.restart()
        after(done, now)
    return now


class _Window:
    """The steps since the last record."""

    def __init__(self, model: MusicGenConfig, config: LMTrainConfig):
        self._schedule = make_schedule(config.optimizer, config.steps)
        self.restart()

    def restart(self) -> None:
        self._steps: list[tuple[int, dict]] = []
        self._tokens, self._began = 0, time.monotonic()

    def add(self, step: int, tokens: int, metrics: dict) -> None:
        self._steps.append((step, metrics))
        self._tokens += tokens

    def record(self) -> dict:
        """Means over the window, or the first non-finite step in it; starts a new window."""
        values = [(step, jax.device_get(metrics)) for step, metrics in self._steps]
        finite = [np.isfinite(m["loss"]) and np.isfinite(m["grad_norm"]) for _, m in values]
        if not all(finite):
            values = [values[finite.index(False)]]
        ce = np.mean([m["ce"] for _, m in values], axis=0)
        step = values[-1][0]
        record = {
            "step": step + 1,
            "loss": rounded(np.mean([m["loss"] for _, m in values])),
            "ppl": rounded(np.exp(min(float(ce.mean()), 80.0))),
            "grad_norm": rounded(np.mean([m["grad_norm"] for _, m in values])),
            "lr": rounded(self._schedule(step)),
            **{f"ce_q{k + 1}": rounded(value) for k, value in enumerate(ce)},
            **{f"ppl_q{k + 1}": rounded(np.exp(np.minimum(v, 80.0))) for k, v in enumerate(ce)},
            "tokens_per_second": round(self._tokens / max(time.monotonic() - self._began, 1e-9)),
        }
        self.restart()
        return record


def rounded(value: Any) -> float:
    """Rounds to seven digits, the precision of a float32."""
    return float(f"{float(value):.7g}")
