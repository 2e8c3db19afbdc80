"""A tiny training run as a program, to be killed: `python -m tests.helpers.lm_runs RUN BASE`."""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from musicgen_jax.commands import train_lm
from musicgen_jax.commands.cli import main as command_line
from musicgen_jax.storage import checkpoint
from musicgen_jax.storage.tokenizer import Tokenizer
from musicgen_jax.training import lm_run, lm_settings
from musicgen_jax.training.batches import Dropout, fixed_length
from musicgen_jax.training.layout import MeshConfig
from musicgen_jax.training.lm import LMTrainConfig, Phase
from musicgen_jax.training.optimizer import OptimizerConfig
from tests.helpers import shallow

BASE = shallow.TEXT
CONFIG = lm_settings.LMRunConfig(
    lm=lm_settings.Sizes(16, 2, 1, ffn_dim=24),
    name="tiny",
    training=LMTrainConfig(
        phases=(Phase(40, 6, 4),),
        optimizer=OptimizerConfig(warmup_steps=2, muon=False),
        dropout=Dropout(0.3),
        ema_decay=0.9,
    ),
    text_length=8,
    log_every=2,
    save_every=5,
    valid_batches=1,
)

SAMPLES = {"sample_every": 3, "sample_seconds": 0.1}


class Periodic:
    """Codes that repeat with a period that the prompt tells.

    Args:
      poisoned: from this many segments on there are codes that no model has, which make NaN.
    """

    codebooks, fingerprint = 4, "periodic"

    def __init__(self, poisoned: int | None = None):
        self._left = poisoned

    def segment(self, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, str]:
        period = int(rng.integers(1, 4))
        codes = np.arange(frames) % period + 5 * np.arange(self.codebooks)[:, None]
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                codes = codes + 10_000
        return codes, "abc"[period - 1] * 3


def train(folder: Path, base: Path, config=CONFIG, examples=None, **settings) -> Path:
    """Trains in this process."""
    examples = examples or Periodic()
    model = lm_settings.model_config(config, checkpoint.load_config(base))
    tokenize = fixed_length(Tokenizer(base / checkpoint.TOKENIZER), config.text_length)
    return lm_run.train(folder, config, model, base, examples, tokenize, **settings)


def shorter(steps: int) -> lm_settings.LMRunConfig:
    """The run over so many steps."""
    return lm_settings.with_steps(CONFIG, steps)


def records(folder: Path) -> list[dict]:
    """What a run recorded, but for how fast it was."""
    from musicgen_jax.training.records import records

    return [
        {name: value for name, value in record.items() if name != "tokens_per_second"}
        for record in records(folder)
    ]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--poison", type=int, help="the step whose loss is to be NaN")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--processes", nargs=3)
    args = parser.parse_args()
    config = shorter(args.steps) if args.steps else CONFIG
    segments = args.poison and (args.poison - 1) * config.training.phases[0].batch_size
    if args.processes:
        import jax

        address, count, process = args.processes
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(count), int(process), initialization_timeout=60)
        mesh = MeshConfig(data=0, model=2 if int(count) == 2 else 1, fsdp=True)
        config = dataclasses.replace(config, mesh=mesh, **SAMPLES)
    # Only the data is not the command's own.
    train_lm._open = lambda *_: Periodic(segments)
    train_lm._settings = lambda _: dataclasses.replace(config, base=str(args.base), data="periodic")
    return command_line(["train", "lm", "--run", str(args.run), "--resume"])


if __name__ == "__main__":
    sys.exit(main())
