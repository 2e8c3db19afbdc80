"""The requests to the bundled model: descriptions of composed pieces not used for training."""

from dataclasses import dataclass

import numpy as np

from musicgen_jax.nano import captions, composer
from musicgen_jax.nano.build import HELD_OUT_SEED
from musicgen_jax.nano.composer import PieceSpec
from musicgen_jax.nano.pieces import spec_of


@dataclass(frozen=True)
class Request:
    """A held-out piece and a prompt for it; `plain` says which kind of words it uses."""

    seed: int
    spec: PieceSpec
    prompt: str
    plain: bool

    def tells(self, row: str) -> bool:
        """Whether the prompt names the attribute of this row of the table."""
        if row in ("bpm", "pulse"):
            return self.prompt.endswith(" bpm")
        return row != "metre" or self.plain or len(composer.STYLE_METRES[self.spec.style]) == 1


def make_request(index: int) -> Request:
    """The request with this index. Even ones use plain words and, except in 6/8, beats a minute."""
    seed = HELD_OUT_SEED + index
    spec = spec_of(seed)
    if index % 2:
        prompt = captions.held_out_caption(spec, np.random.default_rng((seed, 1)))
        return Request(seed, spec, prompt, plain=False)
    bpm = "" if spec.metre == "6/8" else f", {round(spec.bpm)} bpm"
    return Request(seed, spec, captions.full_caption(spec) + bpm, plain=True)
