"""Draws pictures. Only this file imports matplotlib, which the extra `[plot]` installs."""

import os
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from musicgen_jax import files
from musicgen_jax.errors import UserError, one_line


def require_matplotlib() -> None:
    """Raises UserError unless matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError('a picture needs matplotlib: pip install "musicgen-jax[plot]"') from None


def draw_chroma(
    path: str | os.PathLike[str],
    chromas: Mapping[str, np.ndarray],
    seconds: float,
    pitches: Sequence[str],
) -> None:
    """Draws chromagrams below one another: time runs to the right, pitch classes upwards from C.

    Args:
      path: a .png file.
      chromas: by title, float32 [T, bins], from 0 to 1.
      seconds: time from the middle of the first frame to the middle of the last.
      pitches: names of the bins.
    """
    require_matplotlib()
    # Avoid pyplot: this needs no window system and changes no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4 * len(chromas)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(chromas), squeeze=False)[:, 0]
    for axes, (title, chroma) in zip(rows, chromas.items(), strict=True):
        half = seconds / max(len(chroma) - 1, 1) / 2
        axes.imshow(
            chroma.T,
            aspect="auto",
            origin="lower",
            cmap="Blues",
            vmin=0,
            vmax=1,
            interpolation="nearest",
            extent=(-half, seconds + half, -0.5, len(pitches) - 0.5),
        )
        axes.set_yticks(range(len(pitches)), pitches)
        axes.set_yticks(np.arange(len(pitches) - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="0.9", linewidth=0.5)
        axes.tick_params(which="minor", length=0)
        axes.set_xlabel("seconds")
        axes.set_ylabel("pitch class")
        axes.set_title(_plain(title))
    _save(figure, path)


def draw_spectrogram(
    path: str | os.PathLike[str], wav: np.ndarray, sample_rate: int, title: str
) -> None:
    """Draws the level of each frequency over time, in dB below the maximum.

    Args:
      path: a .png file.
      wav: float [W].
      sample_rate: in Hz.
      title: title of the picture.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    window, hop = 1024, 256
    wav = np.pad(np.asarray(wav, np.float64), (0, max(0, window - len(wav))))
    frames = np.lib.stride_tricks.sliding_window_view(wav, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames)) ** 2
    decibels = 10 * np.log10(power / max(power.max(), 1e-12) + 1e-8)
    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    extent = (0, len(wav) / sample_rate, 0, sample_rate / 2000)
    axes.imshow(
        decibels.T, aspect="auto", origin="lower", cmap="magma", vmin=-80, vmax=0, extent=extent
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("kHz")
    axes.set_title(_plain(title))
    _save(figure, path)


def _plain(title: str) -> str:
    """A title that holds names of files: as text, not as a formula."""
    return one_line(title)[:100].replace("$", r"\$")


def _save(figure, path: str | os.PathLike[str]) -> None:
    with files.new_file(path) as file, warnings.catch_warnings():
        # The font lacks some characters, and draws boxes in their place.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png", metadata={"Software": None})
