"""Writes tests/goldens/metrics/vggish.npz with the front end of torchvggish itself.

    pip download torchvggish --no-deps --no-binary :all: && tar xzf torchvggish-*.tar.gz
    python tests/goldens/make_goldens_metrics.py torchvggish-0.2

No weights are needed. resampy, which torchvggish imports but does not need
at 16 kHz, is replaced by an empty module.
"""

import sys
import types
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).parent / "metrics"
SIGNALS = {"noise": 41_234, "tones": 32_000, "clicks": 15_600, "silence": 16_000}


def signal(name: str) -> np.ndarray:
    """Float64 [W] at 16 kHz."""
    n = SIGNALS[name]
    t = np.arange(n) / 16000
    match name:
        case "noise":
            return np.random.default_rng(0).normal(0, 0.1, n)
        case "tones":
            # Edges of the filters: 100 Hz is below them, 7.6 kHz above.
            return sum(np.sin(2 * np.pi * f * t) for f in (100, 440, 3000, 7450, 7600)) / 10
        case "clicks":
            return (np.arange(n) % 4000 == 0).astype(float)
    return np.zeros(n)


def main(source: str) -> None:
    """Computes and writes."""
    sys.modules["resampy"] = types.ModuleType("resampy")
    sys.path.insert(0, source)
    from torchvggish import vggish_input

    arrays = {}
    for name in SIGNALS:
        rows = vggish_input.waveform_to_examples(signal(name), 16000, return_tensor=False)
        arrays[name] = rows.astype(np.float32)
    GOLDENS.mkdir(exist_ok=True)
    np.savez_compressed(GOLDENS / "vggish.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
