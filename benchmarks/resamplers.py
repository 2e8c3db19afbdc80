"""How far soxr's samples are from julius', the two resamplers that this package has.

Question: audio files are resampled with soxr, where audiocraft uses julius. How large is the
difference? It is the energy of the difference over the energy of julius' samples, in dB, for a
piece of the music that `nano` was trained on and for white noise. Noise counts twice: with all
frequencies, and with those below 80 % of the lower Nyquist frequency, which both filters pass.

    python benchmarks/resamplers.py --rates 44100:32000 48000:32000
"""

import argparse

import numpy as np

from musicgen_jax import audio
from musicgen_jax.conditioning.resample import resample_frac
from musicgen_jax.nano.build import piece
from musicgen_jax.nano.composer import FRAME_RATE
from musicgen_jax.nano.synth import SAMPLE_RATE

PASSED = 0.8  # of the lower Nyquist frequency
EDGE = 0.1  # seconds at either end that are left out: the two continue the signal differently


def low_passed(wav: np.ndarray, sample_rate: int, cutoff: float) -> np.ndarray:
    """Float [C, W] without the frequencies above `cutoff` Hz."""
    spectrum = np.fft.rfft(wav)
    spectrum[..., np.fft.rfftfreq(wav.shape[-1], 1 / sample_rate) > cutoff] = 0
    return np.fft.irfft(spectrum, wav.shape[-1]).astype(np.float32)


def difference(wav: np.ndarray, from_rate: int, to_rate: int) -> float:
    """Energy of the difference over the energy of julius' samples, in dB.

    Args:
      wav: float [C, W].
      from_rate: of `wav`, in samples per second.
      to_rate: of the two results.
    """
    edge = round(EDGE * to_rate)
    soxr = audio.resample(wav, from_rate, to_rate)[:, edge:-edge].astype(np.float64)
    julius = np.asarray(resample_frac(wav, from_rate, to_rate), np.float64)[:, edge:-edge]
    return float(10 * np.log10(((soxr - julius) ** 2).sum() / (julius**2).sum()))


def signals(from_rate: int, to_rate: int, seconds: float) -> dict[str, np.ndarray]:
    """Float32 [1, W] at `from_rate`."""
    _, music = piece(0, round(seconds * FRAME_RATE))
    noise = np.random.default_rng(0).normal(size=(1, round(seconds * from_rate))).astype(np.float32)
    passed = PASSED * min(from_rate, to_rate) / 2
    return {
        "music": audio.resample(np.asarray(music)[None], SAMPLE_RATE, from_rate),
        "noise": noise,
        f"noise below {PASSED:.0%}": low_passed(noise, from_rate, passed),
    }


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rates", nargs="+", default=["44100:32000", "48000:32000"])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each signal")
    args = parser.parse_args(argv)
    result = {}
    for rates in args.rates:
        from_rate, to_rate = map(int, rates.split(":"))
        result[rates] = {
            name: round(difference(wav, from_rate, to_rate), 1)
            for name, wav in signals(from_rate, to_rate, args.seconds).items()
        }
        for name, decibels in result[rates].items():
            print(f"{from_rate} to {to_rate} Hz, {name}: {decibels:.1f} dB")
    return result


if __name__ == "__main__":
    main()
