"""Writes tests/goldens/metrics/passt.npz with hear21passt's own network and front end.

    pip download hear21passt==0.0.26 --no-deps && unzip hear21passt-*.whl -d WHERE
    python tests/goldens/make_goldens_passt.py WHERE

The network is small and its weights are drawn by name, so only outputs are stored. What hear21passt
imports but does not need here is replaced: timm, which downloads, and torchaudio, of which it uses
Kaldi's mel filters. Those are written here from Kaldi's definition.
"""

import contextlib
import functools
import os
import sys
import types
import zlib
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).parent / "metrics"
DIM, HEADS, LAYERS, CLASSES, SECONDS = 128, 2, 2, 11, 2
SIGNALS = {"noise": 64_000, "tones": 40_000, "shortest": 4_801, "silence": 16_000}


def signal(name: str) -> np.ndarray:
    """Float32 [W] at 32 kHz."""
    n = SIGNALS[name]
    t = np.arange(n) / 32000
    if name in ("noise", "shortest"):
        return np.random.default_rng(0).normal(0, 0.1, n).astype(np.float32)
    if name == "tones":  # near both ends of the filters, and quiet
        tones = sum(np.sin(2 * np.pi * f * t) for f in (30, 440, 9000, 14_800, 15_500))
        return (0.01 * tones).astype(np.float32)
    return np.zeros(n, np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name: norms around 1, all others around 0, deviation 0.3."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    norm = name.endswith("weight") and ("norm" in name or name == "head.0.weight")
    return rng.normal(float(norm), 0.3, shape).astype(np.float32)


def _filters(bands, fft, rate, low, high, **_):
    """Kaldi's triangles, float32 [bands, fft / 2]."""
    import torch

    def mel(f):
        return 1127 * np.log1p(f / 700)

    edges = np.linspace(mel(low), mel(high), bands + 2)
    at = mel(np.arange(fft // 2) * rate / fft)
    filters = np.zeros((bands, fft // 2))
    for i in range(bands):
        left, centre, right = edges[i : i + 3]
        rising, falling = (at - left) / (centre - left), (right - at) / (right - centre)
        filters[i] = np.maximum(0, np.minimum(rising, falling))
    return torch.from_numpy(filters.astype(np.float32)), None


def network(source: str):
    """hear21passt's PaSST with the weights above, and its front end."""
    import torch

    for name in ("timm", "timm.models", "timm.models._hub", "torchaudio"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["timm.models._hub"].download_cached_file = None
    kaldi = types.SimpleNamespace(get_mel_banks=_filters)
    sys.modules["torchaudio"].compliance = types.SimpleNamespace(kaldi=kaldi)
    torch.stft = functools.partial(_real_stft, torch.stft)
    sys.path.insert(0, source)
    from hear21passt.models.passt import PaSST
    from hear21passt.models.preprocess import AugmentMelSTFT

    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        model = PaSST(
            img_size=(128, SECONDS * 100), stride=10, embed_dim=DIM, depth=LAYERS,
            num_heads=HEADS, num_classes=CLASSES, distilled=True,
        ).eval()  # fmt: skip
        front = AugmentMelSTFT(freqm=0, timem=0, fmin_aug_range=10, fmax_aug_range=2000).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape))))
    return model, front


def _real_stft(stft, *args, **kwargs):
    import torch

    kwargs["return_complex"] = True  # what newer versions of torch insist on
    return torch.view_as_real(stft(*args, **kwargs))


def main(source: str) -> None:
    """Computes and writes."""
    import torch

    model, front = network(source)
    arrays = {}
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), torch.no_grad():
        for name in SIGNALS:
            spectrum = front(torch.from_numpy(signal(name))[None])
            logits, features = model(spectrum[:, None])
            arrays[f"{name}/logits"] = logits[0].numpy()
            arrays[f"{name}/features"] = features[0].numpy()
            arrays[f"{name}/spectrum"] = spectrum[0, :, ::10].numpy()
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    arrays["shapes"] = np.array([f"{name} {' '.join(map(str, s))}" for name, s in shapes.items()])
    GOLDENS.mkdir(exist_ok=True)
    np.savez_compressed(GOLDENS / "passt.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
