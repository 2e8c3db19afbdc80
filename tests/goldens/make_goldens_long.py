"""Writes tests/goldens/long/expected.npz: pieces of several windows by audiocraft's MusicGen.

    python -m tests.make_goldens_long AUDIOCRAFT

The models are those of tests/goldens/audiocraft, the checkout and what it needs as in
`tests.make_goldens_audiocraft`. Windows are short; tokens are the likeliest ones.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np
import torch

from tests.goldens.make_goldens_audiocraft import CARD, TEXT, load, stub_modules
from tests.goldens.make_goldens_style import Margins
from tests.helpers.paths import GOLDENS

OUT = GOLDENS / "long" / "expected.npz"
MARGIN = 2e-5  # as there, but of ten times as many decisions; rounding is near 1e-6
WINDOW = 1.0  # seconds that the model sees at once
# seconds, stride, frames of prompt
CASES = {
    "half": (1.3, 0.6, 0),
    "three": (2.3, 0.6, 0),
    "full": (2.2, 0.6, 0),
    "odd": (1.77, 0.43, 0),
    "wide": (2.5, 0.9, 0),
    "prompt": (1.9, 0.6, 17),
    "late": (1.7, 0.6, 44),
}


@torch.no_grad()
def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audiocraft", type=Path)
    stub_modules()
    sys.path.insert(0, str(parser.parse_args().audiocraft))
    torch.set_num_threads(1)
    torch.load = functools.partial(torch.load, weights_only=False)
    rng = np.random.default_rng(1)
    expected = {}
    with Margins() as margins:
        for name, books in (("text", 4), ("stereo", 8)):
            model = load(name)
            model.max_duration = WINDOW
            attributes = model._prepare_tokens_and_attributes([TEXT], None)[0]
            for case, (seconds, stride, given) in CASES.items():
                margins.case = f"{name}, {case}"
                model.set_generation_params(
                    use_sampling=False, duration=seconds, extend_stride=stride
                )
                prompt = rng.integers(0, CARD, (1, books, given))
                codes = model._generate_tokens(
                    attributes, torch.from_numpy(prompt) if given else None
                )
                assert codes.shape[2] == int(seconds * 50), codes.shape
                expected[f"{name}_{case}_codes"] = codes.numpy().astype(np.int16)
                if case in ("half", "three"):
                    audio = model.generate_audio(codes).numpy()
                    expected[f"{name}_{case}_audio"] = audio[:, :, ::7]
    print({case: f"{value:.1e}" for case, value in margins.least.items()}, flush=True)
    assert min(margins.least.values()) > MARGIN, "try other cases"
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **expected)
    print(OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
