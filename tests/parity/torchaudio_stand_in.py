"""torchaudio's Spectrogram from torch alone, for where torchaudio is missing or does not load.

transformers' and audiocraft's melody need nothing else of torchaudio at the model's own rate. What
torchaudio calls `normalized=True` is a division by the root of the window's energy.
"""

import importlib.util
import sys
import types

import torch


class Spectrogram(torch.nn.Module):
    """Power, centred, reflected, normalised: the one form that is used."""

    def __init__(self, n_fft, win_length, hop_length, power, center, pad, normalized):
        super().__init__()
        assert (power, center, pad, normalized) == (2, True, 0, True)
        assert win_length == n_fft
        self.n_fft, self.hop = n_fft, hop_length
        self.register_buffer("window", torch.hann_window(win_length))

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """`[..., W]` to `[..., n_fft // 2 + 1, T]`."""
        flat = wave.reshape(-1, wave.shape[-1])
        spectrum = torch.stft(
            flat, self.n_fft, self.hop, window=self.window, center=True, pad_mode="reflect",
            return_complex=True,
        )  # fmt: skip
        power = (spectrum / self.window.pow(2).sum().sqrt()).abs().pow(2)
        return power.reshape(*wave.shape[:-1], *power.shape[-2:])


def install() -> types.ModuleType:
    """The real torchaudio if it loads, else the stand-in, put in its place."""
    try:
        import torchaudio

        return torchaudio
    except (ImportError, OSError):  # OSError: built for another torch
        pass
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    package = types.ModuleType("torchaudio")
    package.transforms = types.ModuleType("torchaudio.transforms")
    package.transforms.Spectrogram = Spectrogram
    for module in (package, package.transforms):
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, loader=None)
        sys.modules[module.__name__] = module
    return package
