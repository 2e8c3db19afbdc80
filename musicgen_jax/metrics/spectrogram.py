"""A small picture of a clip, as a PNG of a few kilobytes, without a drawing library."""

import functools
import struct
import zlib

import numpy as np

WIDTH, HEIGHT = 240, 64  # pixels
_WINDOW = 2048  # samples
_LOWEST, _HIGHEST = 40.0, 16_000.0  # Hz
_RANGE = 70.0  # dB below the loudest
_COLOURS = (
    (0, 0, 4),
    (60, 15, 110),
    (160, 45, 120),
    (235, 90, 80),
    (253, 180, 100),
    (252, 253, 200),
)


def png(wav: np.ndarray, sample_rate: int) -> bytes:
    """The level of each band over time: time to the right, frequency upwards, logarithmic.

    Args:
      wav: float [C, W].
      sample_rate: in Hz.
    """
    mono = np.asarray(wav, np.float64).mean(axis=0)
    mono = np.pad(mono, (0, max(0, _WINDOW - len(mono))))
    starts = np.linspace(0, len(mono) - _WINDOW, WIDTH).astype(int)
    frames = mono[starts[:, None] + np.arange(_WINDOW)] * np.hanning(_WINDOW)
    power = np.square(np.abs(np.fft.rfft(frames)))
    edges = np.geomspace(_LOWEST, min(_HIGHEST, sample_rate / 2), HEIGHT + 1)
    bins = np.clip((edges * _WINDOW / sample_rate).astype(int), 1, power.shape[1] - 1)
    sums = np.cumsum(np.pad(power, ((0, 0), (1, 0))), axis=1)
    counts = np.maximum(np.diff(bins), 1)  # low bands are narrower than a bin
    bands = (sums[:, bins[:-1] + counts] - sums[:, bins[:-1]]) / counts
    decibels = 10 * np.log10(np.maximum(bands, 1e-14) / max(bands.max(), 1e-6))
    shades = np.clip(255 * (1 + decibels / _RANGE), 0, 255).astype(np.uint8)
    return _encoded(shades.T[::-1])


def _encoded(shades: np.ndarray) -> bytes:
    """Shades uint8 [H, W] as an indexed PNG."""
    height, width = shades.shape
    rows = np.pad(shades, ((0, 0), (1, 0)))  # every row begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", _palette()), (b"IDAT", zlib.compress(rows.tobytes(), 9)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in (*chunks, (b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


@functools.cache
def _palette() -> bytes:
    """256 colours, from black over red to a light yellow."""
    places = np.linspace(0, 255, len(_COLOURS))
    channels = [np.interp(np.arange(256), places, column) for column in np.array(_COLOURS).T]
    return np.stack(channels, axis=1).round().astype(np.uint8).tobytes()
