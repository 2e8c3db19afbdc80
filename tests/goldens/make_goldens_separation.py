"""Writes tests/goldens/separation: a small HTDemucs as demucs saves it, and its numbers.

    python -m tests.make_goldens_separation

needs the extra [parity]. tests/parity/test_separation.py uses the same model.
"""

import math
import platform
import random
from fractions import Fraction
from unittest import mock

import demucs
import numpy as np
import torch
from demucs import states
from demucs.api import Separator
from demucs.apply import apply_model
from demucs.htdemucs import HTDemucs
from omegaconf import OmegaConf

from tests.helpers import paths

GOLDENS = paths.GOLDENS / "separation"
RATE = 1000
SEGMENT = 1203  # samples, an odd number; the spectrogram has ten frames of it
SOURCES = ["drums", "bass", "other", "vocals"]
# Every setting of the released model that its size does not need, and the same structure.
KWARGS = {
    "sources": SOURCES,
    "audio_channels": 2,
    "channels": 8,
    "depth": 3,
    "nfft": 512,
    "dconv_mode": 3,
    "dconv_comp": 4,
    "bottom_channels": 24,
    "t_layers": 3,
    "t_heads": 2,
    "samplerate": RATE,
    "segment": Fraction(SEGMENT, RATE),
}
LENGTHS = {"one": 1, "short": 601, "long": 2101}  # a sample, half a segment, three of them
SHIFT = 123
# What each of these does must show in the output. The embedding is stored smaller by emb_scale.
PARTS = {
    "frequency branch": ("encoder.", "decoder."),
    "time branch": ("tencoder.", "tdecoder."),
    "frequency embedding": ("freq_emb.",),
    "DConv of the encoder": tuple(f"encoder.{i}.dconv.layers.1.6." for i in range(3)),
    "DConv of the decoder": tuple(f"tdecoder.{i}.dconv.layers.0.6." for i in range(3)),
    "self-attention": ("crosstransformer.layers.0.gamma_1",),
    "cross-attention": ("crosstransformer.layers.1.gamma_1",),
    "cross-attention of the time branch": ("crosstransformer.layers_t.1.gamma_1",),
    "feed-forward": ("crosstransformer.layers.2.gamma_2",),
}


def random_model(seed: int = 0, **changes) -> HTDemucs:
    """A small HTDemucs in which every part matters: demucs' own start has its residuals near 0."""
    torch.manual_seed(seed)
    model = HTDemucs(**(KWARGS | changes)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape)
            scale = name.endswith((".scale", "gamma_1", "gamma_2")) or "norm" in name
            scale = scale or (".dconv." in name and value.ndim == 1)
            if name.startswith("freq_emb"):
                value.copy_(noise * 0.3)
            elif value.ndim >= 2:
                transposed = ".conv_tr." in name
                fan_in = 2 * value.shape[0] if transposed else math.prod(value.shape[1:])
                value.copy_(noise * 1.4 / math.sqrt(fan_in))
            elif scale and not name.endswith("bias"):
                value.copy_(1 + 0.3 * noise)
            else:
                value.copy_(0.3 * noise)
        # In half precision, as the released file: the goldens are of the rounded weights.
        for value in model.parameters():
            value.copy_(value.half().float())
    return model


def noise(length: int, channels: int = 2) -> np.ndarray:
    """Tones and noise, float32 [channels, length]; the channels differ and are off centre."""
    rng = np.random.default_rng(length)
    time = np.arange(length) / RATE
    tones = [np.sin(2 * np.pi * (60 + 45 * c) * time) for c in range(channels)]
    return (0.3 * np.stack(tones) + 0.1 * rng.standard_normal((channels, length)) + 0.02).astype(
        np.float32
    )


def package(model: HTDemucs, *, half: bool = True) -> dict:
    """What demucs' training exports."""
    settings = {"seed": 42, "htdemucs": {"depth": 3, "t_emb": "sin"}, "dset": {"samplerate": RATE}}
    return states.serialize_model(model, OmegaConf.create(settings), half=half)


@torch.no_grad()
def forward(model: HTDemucs, mix: np.ndarray) -> np.ndarray:
    """[B, 2, W] -> [B, stems, 2, W]."""
    return model(torch.from_numpy(mix)).numpy()


def applied(model: HTDemucs, audio: np.ndarray, offset: int | None = None) -> np.ndarray:
    """`apply_model` on [2, W], at a fixed shift if one is given."""
    with mock.patch.object(random, "randint", return_value=offset):
        shifts = 0 if offset is None else 1
        return apply_model(model, torch.from_numpy(audio)[None], shifts=shifts)[0].numpy()


def separated(model: HTDemucs, audio: np.ndarray) -> np.ndarray:
    """As `demucs.api` separates: normalised first; no shift."""
    separator = Separator.__new__(Separator)  # its own constructor would download a model
    separator._model, separator._samplerate, separator._audio_channels = model, RATE, 2
    separator._callback, separator._callback_arg = None, {}
    separator.update_parameter(
        device="cpu", shifts=0, overlap=0.25, split=True, segment=None, jobs=0, progress=False
    )
    _, stems = separator.separate_tensor(torch.from_numpy(audio))
    return np.stack([stems[name].numpy() for name in SOURCES])


def matters(model: HTDemucs, mix: np.ndarray) -> dict[str, float]:
    """By how much the output changes, relative to its largest value, if a part gives zeros."""
    whole, result = forward(model, mix), {}
    for part, prefixes in PARTS.items():
        kept = {k: v.clone() for k, v in model.state_dict().items()}
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name.startswith(prefixes):
                    value.zero_()
        result[part] = float(np.abs(forward(model, mix) - whole).max() / np.abs(whole).max())
        model.load_state_dict(kept)
    return result


def main() -> None:
    model = random_model()
    effects = matters(model, noise(SEGMENT)[None])
    print(effects)
    assert min(effects.values()) > 0.02, effects
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for old in GOLDENS.glob("*.th"):
        old.unlink()
    states.save_with_checksum(package(model), GOLDENS / "955717e8.th")
    expected = {"segment_audio": noise(SEGMENT), "segment": forward(model, noise(SEGMENT)[None])[0]}
    for name, length in LENGTHS.items():
        audio = noise(length)
        expected[f"{name}_audio"] = audio
        expected[f"{name}_applied"] = applied(model, audio)
    expected["short_separated"] = separated(model, noise(LENGTHS["short"]))
    expected["long_shifted"] = applied(model, noise(LENGTHS["long"]), offset=SHIFT)
    sizes = {name: float(np.abs(value).max()) for name, value in expected.items()}
    assert all(0.05 < size < 50 for size in sizes.values()), sizes
    np.savez_compressed(
        GOLDENS / "expected.npz", **{k: v.astype("f4") for k, v in expected.items()}
    )
    (GOLDENS / "README.md").write_text(
        README.format(
            python=platform.python_version(),
            torch=torch.__version__,
            demucs=demucs.__version__,
            effects="\n".join(f"    {part}: {x:.2f}" for part, x in effects.items()),
        ),
        encoding="utf-8",
    )


README = """\
# Golden files of the separation

    955717e8-*.th   a small HTDemucs with random weights, as demucs saves its models, in fp16
    expected.npz    inputs, and what demucs makes of them

Made by `python -m tests.make_goldens_separation` with Python {python}, torch {torch} and demucs
{demucs}. By so much, relative to its largest value, the output changes without

{effects}
"""

if __name__ == "__main__":
    main()
