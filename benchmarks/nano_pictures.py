"""Pictures of the bundled model's clips: log-mel spectrograms next to those of real pieces.

    pip install 'musicgen-jax[plot]'
    python benchmarks/nano_pictures.py                 # writes benchmarks/nano_spectrograms.png

One row per request: the first requests of the report whose lead instruments differ. Left to right:
the generated clip, the real piece through the codec, and the real piece.
"""

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from nano_clips import generate, through_codec
from nano_probes import MEL_BANDS, log_mel
from nano_requests import Request, make_request

from musicgen_jax import MusicGen
from musicgen_jax.nano.composer import FRAME_RATE
from musicgen_jax.nano.pieces import piece
from musicgen_jax.nano.synth import SAMPLE_RATE

FILE = "nano_spectrograms.png"
COLUMNS = {"generated": "generated", "codec": "real, through the codec", "rendered": "real"}
LOUDNESS = (-1.2, 5.0)  # log-mel values of the darkest and the brightest colour
PICTURES = 3
COLOURS = 32  # few enough for a small file, and enough for smooth shades


def chosen(requests: Sequence[Request], count: int = PICTURES) -> list[int]:
    """The first requests whose lead instruments differ, and nothing else about them."""
    first: dict[str, int] = {}
    for i, request in enumerate(requests):
        first.setdefault(request.spec.lead, i)
    return list(first.values())[:count]


def draw(path: Path, requests: Sequence[Request], clips: Mapping[str, np.ndarray]) -> None:
    """Writes one PNG file: a row per request, a column per kind of clip, one scale of colours.

    Args:
      path: of the file; written under a temporary name and renamed.
      requests: one per row.
      clips: audio [N, W] at the composer's rate, by the names in `COLUMNS`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib needs it, too

    size = (10, 0.6 + 1.35 * len(requests))
    figure = Figure(figsize=size, dpi=90, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(requests), len(COLUMNS), sharex=True, sharey=True, squeeze=False)
    for i, request in enumerate(requests):
        for axes, name in zip(grid[i], COLUMNS, strict=True):
            clip = clips[name][i]
            axes.imshow(
                log_mel(clip).T,
                origin="lower",
                aspect="auto",
                cmap="magma",
                extent=(0, len(clip) / SAMPLE_RATE, 0, MEL_BANDS),
                vmin=LOUDNESS[0],
                vmax=LOUDNESS[1],
            )
            axes.set_yticks([])
        # The middle one, so that a long prompt has the whole width of the figure.
        title = f"{COLUMNS['codec']}\n" if i == 0 else ""
        grid[i][1].set_title(title + f'"{request.prompt}"', fontsize=8)
    grid[0][0].set_title(f"{COLUMNS['generated']}\n", fontsize=8)
    grid[0][2].set_title(f"{COLUMNS['rendered']}\n", fontsize=8)
    figure.supxlabel("seconds", fontsize=8)
    figure.supylabel("mel bands, 40 Hz to 7.8 kHz", fontsize=8)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(aside, format="PNG", optimize=True)
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="nano", help='"nano" or a model folder')
    parser.add_argument("--duration", type=float, default=8.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the generation")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(FILE))
    args = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("needs matplotlib: pip install 'musicgen-jax[plot]'")
    model = MusicGen.from_pretrained(args.model)
    requests = [make_request(i) for i in range(50)]
    requests = [requests[i] for i in chosen(requests)]
    real = [piece(request.seed, int(args.duration * FRAME_RATE))[1] for request in requests]
    rendered = np.stack(real)
    generated, _ = generate(model, requests, len(requests), args.seed, {"duration": args.duration})
    decoded, _ = through_codec(model, rendered, len(requests))
    draw(args.out, requests, {"generated": generated, "codec": decoded, "rendered": rendered})
    print(f"{args.out}: {args.out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
