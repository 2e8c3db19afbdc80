"""Makes tests/goldens/training: small files as audiocraft's trainer saves them.

    pip install -e ".[test,parity]"
    python -m tests.make_training_goldens

The weights are random, of the debug model; omegaconf's settings, the optimizer and its schedule are
the real libraries' own objects, as torch pickles them.
"""

import collections
import shutil
from pathlib import Path

import torch
from omegaconf import OmegaConf

from musicgen_jax.testing import DEBUG
from tests.helpers import paths
from tests.helpers.official_files import audiocraft_codec, audiocraft_lm

GOLDENS = paths.GOLDENS / "training"
LM_YAML = f"""\
sample_rate: {DEBUG.encodec.sample_rate}
channels: 1
compression_model_checkpoint: //pretrained/facebook/encodec_32khz
continue_from: null
dataset:
  segment_duration: 12
  batch_size: 8
  train:
    num_samples: 1000000
    sample_on_weight: false
transformer_lm:
  num_heads: {DEBUG.lm.num_heads}
  activation: gelu
  norm_first: true
  positional_embedding: sin
  weight_decay: 1.0e-05
codebooks_pattern:
  modeling: delay
  delay:
    delays: [0, 1, 2, 3]
    flatten_first: 0
    empty_initial: 0
classifier_free_guidance:
  training_dropout: 0.3
conditioners:
  description:
    model: t5
    t5:
      name: t5-base
      finetune: false
fuser:
  sum: []
  cross: [description]
rvq: {{}}
optim:
  betas: [0.9, 0.95]
schedule:
  lr_scheduler: cosine
  extra: '${{sample_rate}}'
"""
CODEC_YAML = f"""\
sample_rate: {DEBUG.encodec.sample_rate}
compression_model: encodec
encodec:
  quantizer: rvq
  sample_rate: ${{sample_rate}}
  causal: false
  renormalize: false
seanet:
  causal: false
  norm: weight_norm
  true_skip: true
  activation: ELU
  pad_mode: reflect
"""


def settings(text: str):
    """What hydra makes of the YAML: frozen, with references unresolved."""
    config = OmegaConf.create(text)
    OmegaConf.set_struct(config, True)
    return config


def training_state(model: dict[str, torch.Tensor], text: str, *, fsdp: bool) -> dict:
    """What the solver's `state_dict` holds after an epoch."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=1e-4, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    weight.sum().backward()
    optimizer.step()
    schedule.step()
    average = collections.defaultdict(dict)
    average["model"] = {"average": torch.full((3,), 7.0)}
    return {
        "model": model,
        "best_state": {"model": {} if fsdp else model},
        "fsdp_best_state": {"model": model} if fsdp else {},
        "ema": {"state": average, "count": 1.99},
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "history": [{"train": {"ce": 3.5, "lr": 1e-4}, "valid": {"ce": 3.6}}],
        "xp.cfg": settings(text),
        "xp.sig": "0123abcd",
    }


def tensors(state: dict) -> dict[str, torch.Tensor]:
    """numpy to torch."""
    return collections.OrderedDict((key, torch.from_numpy(x)) for key, x in state.items())


def write(folder: Path) -> None:
    """Makes `lm/checkpoint.th`, and `codec/checkpoint.th` of a run with FSDP."""
    for name, state, text in (
        ("lm", audiocraft_lm(), LM_YAML),
        ("codec", audiocraft_codec(), CODEC_YAML),
    ):
        (folder / name).mkdir(parents=True)
        state = training_state(tensors(state), text, fsdp=name == "codec")
        torch.save(state, folder / name / "checkpoint.th")


if __name__ == "__main__":
    shutil.rmtree(GOLDENS, ignore_errors=True)
    write(GOLDENS)
