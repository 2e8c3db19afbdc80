"""Whether audiocraft itself takes what is written for it, and plays what it played before.

    python -m tests.check_to_torch_audiocraft AUDIOCRAFT FOLDER

FOLDER holds `text`, `stereo` and `melody`, as `write` below makes them of the goldens with
musicgen_jax (which audiocraft's environment need not have):

    python -m tests.check_to_torch_audiocraft --write FOLDER

AUDIOCRAFT is a checkout, and its requirements are those of `make_goldens_audiocraft`. Its loaders
read the folders; the greedy tokens and the logits must be those that audiocraft computed of the
files that the models were converted from, which stand beside these as expected.npz.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

from tests.helpers.paths import GOLDENS

NAMES = ("text", "stereo", "melody")


def write(folder: Path) -> None:
    """Goldens to our folders and back."""
    from musicgen_jax.convert import convert, export_torch

    codec = str(GOLDENS / "audiocraft/text")
    for name in NAMES:
        ours = folder / f"{name}-ours"
        t5 = str(GOLDENS / "mono/t5-base")
        convert(GOLDENS / "audiocraft" / name, ours, t5_from=t5, encodec_from=codec)
        export_torch(ours, folder / name, format="audiocraft")


def check(checkout: Path, folder: Path) -> None:
    """Raises AssertionError where audiocraft's numbers are others."""
    import torch

    from tests.goldens import make_goldens_audiocraft as goldens

    goldens.stub_modules()
    sys.path.insert(0, str(checkout))
    torch.set_num_threads(1)
    torch.load = functools.partial(torch.load, weights_only=False)
    from audiocraft.models import loaders
    from audiocraft.models.musicgen import MusicGen

    goldens.T5 = folder / "text" / "t5-base"  # the one that was written
    for name in NAMES:
        with goldens.t5_from_goldens():
            lm = loaders.load_lm_model(folder / name)
            model = MusicGen(name, loaders.load_compression_model(folder / name), lm)
        if name == "melody":
            conditioner = lm.condition_provider.conditioners["self_wav"]
            conditioner.match_len_on_eval, conditioner._use_masking = True, False
        with np.load(GOLDENS / "audiocraft" / name / "expected.npz") as arrays:
            expected = dict(arrays)
        wavs = [None] if name == "melody" else None
        with torch.no_grad():
            conditions, _ = model._prepare_tokens_and_attributes([goldens.TEXT], None, wavs)
            model.set_generation_params(use_sampling=False, duration=goldens.FRAMES / 50)
            codes = model._generate_tokens(conditions, None)
            audio = model.generate_audio(codes).numpy()
        np.testing.assert_array_equal(codes.numpy(), expected["text_codes"])
        np.testing.assert_allclose(audio, expected["text_audio"], atol=1e-5)
        print(
            f"{name}: the same tokens, sound off by {np.abs(audio - expected['text_audio']).max()}"
        )


def main() -> None:
    """Writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("paths", type=Path, nargs="+")
    args = parser.parse_args()
    if args.write:
        write(*args.paths)
    else:
        check(*args.paths)


if __name__ == "__main__":
    main()
