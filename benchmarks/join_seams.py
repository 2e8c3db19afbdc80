"""Are the joins of a long piece audible?

Question: does the music jump more at a join of two windows than elsewhere? The bundled model
generates a few long pieces, with hard joins and with crossfades. The script measures three jumps at
every join, and compares them with the same measures at all moments far from any join:

    loudness   difference of the loudness (dB) of the 0.2 s before and after
    spectrum   distance of the two mean log spectra (dB, over 40 bands of equal width in mel)
    click      largest curvature of the waveform within 2 ms, relative to its level around

A crossfade is measured at its beginning, middle and end. A moment counts as audible, by one
measure, if it exceeds the 95th percentile of the moments far from joins. By chance 5 % of all
moments do. The table shows how many moments at joins do, and how likely that many or more are by
chance.

    python benchmarks/join_seams.py --pieces 10 --joins 6

Appends one JSON line to benchmarks/results.jsonl.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import math
import platform
import subprocess
from pathlib import Path

import jax
import numpy as np

from musicgen_jax.generation.joins import JOINS
from musicgen_jax.generation.piece import Piece
from musicgen_jax.generation.request import Request
from musicgen_jax.generation.windows import Window
from musicgen_jax.model import MusicGen

HERE = Path(__file__).parent
PROMPTS = (
    "a calm piano melody over warm strings",
    "fast drums and a driving bass",
    "slow ambient pads",
    "a happy tune with bells and a soft beat",
)
SPAN = 0.2  # seconds compared on either side
STEP = 0.02  # seconds between the moments to compare with
NEAR = 2.0  # seconds around a join without such moments
BANDS = 40
MEASURES = ("loudness", "spectrum", "click")


def make(model: MusicGen, pieces: int, joins: int, join: str) -> tuple[np.ndarray, list[Window]]:
    """Audio [B, C, W] of pieces with the given number of joins, and their windows."""
    texts = [PROMPTS[i % len(PROMPTS)] for i in range(pieces)]
    condition = model.text_condition(texts)
    # The last join is one stride before the end, so that no window is short.
    duration = model.max_duration * (1 + 0.6 * joins)
    request = Request(
        config=model.config,
        descriptions=texts,
        duration=duration,
        seed=list(range(pieces)),
        join=join,
    )
    piece = Piece(model.parts, request, lambda offset: condition)
    audio = np.concatenate(list(piece.audio()), axis=2)
    assert len(request.windows) == joins + 1
    return audio, request.windows


def moments(model: MusicGen, windows: list[Window]) -> np.ndarray:
    """Seconds at which joins are measured, [joins, points]."""
    points = []
    for before, after in itertools.pairwise(windows):
        end = before.end / model.frame_rate
        overlap = after.overlap / model.frame_rate
        points.append([end - overlap, end - overlap / 2, end] if overlap else [end])
    return np.array(points)


class Jumps:
    """The three measures at any moment of mono audio."""

    def __init__(self, audio: np.ndarray, rate: int):
        self.audio, self.rate = audio.astype(np.float64), rate
        self.span = round(SPAN * rate)
        self.level = np.sqrt(np.mean(self.audio**2)) + 1e-12
        spectrum_bins = np.arange(self.span // 2 + 1) * rate / self.span
        highest = 2595 * math.log10(1 + rate / 1400)
        edges = 700 * (10 ** (np.linspace(0, highest, BANDS + 1) / 2595) - 1)
        self.bands = np.digitize(spectrum_bins, edges[1:-1])
        self.curvature = np.abs(np.diff(self.audio, 2, prepend=0, append=0))

    def at(self, seconds: float) -> list[float]:
        """Loudness, spectrum and click at a moment."""
        middle = round(seconds * self.rate)
        sides = self.audio[middle - self.span : middle], self.audio[middle : middle + self.span]
        # Silence has a floor of -60 dB relative to the whole piece.
        floor = (1e-3 * self.level) ** 2
        loud = [10 * math.log10(np.mean(side**2) + floor) for side in sides]
        window = np.hanning(self.span)
        bands = []
        for side in sides:
            power = np.abs(np.fft.rfft(window * side)) ** 2 / self.span
            per_band = np.bincount(self.bands, power, BANDS)
            bands.append(10 * np.log10(per_band + floor))
        reach = round(0.002 * self.rate)
        around = self.curvature[middle - self.span : middle + self.span]
        click = self.curvature[middle - reach : middle + reach].max()
        return [
            abs(loud[0] - loud[1]),
            float(np.sqrt(np.mean((bands[0] - bands[1]) ** 2))),
            float(click / (np.sqrt(np.mean(around**2)) + 1e-3 * self.level)),
        ]


def by_chance(count: int, of: int, share: float = 0.05) -> float:
    """The probability of `count` or more hits out of `of`, each with probability `share`."""
    return sum(math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(count, of + 1))


def compare(model: MusicGen, audio: np.ndarray, windows: list[Window]) -> list[dict]:
    """A row per measure."""
    joins = moments(model, windows)
    length = audio.shape[2] / model.sample_rate
    times = np.arange(SPAN, length - SPAN, STEP)
    far = np.abs(times[:, None] - joins.reshape(-1)).min(axis=1) > NEAR
    inside, at = [], []
    for clip in audio.mean(axis=1):
        jumps = Jumps(clip, model.sample_rate)
        inside += [jumps.at(time) for time in times[far]]
        at += [jumps.at(time) for time in joins.reshape(-1)]
    inside, at = np.array(inside), np.array(at)
    rows = []
    for i, name in enumerate(MEASURES):
        line = float(np.quantile(inside[:, i], 0.95))
        above = int((at[:, i] > line).sum())
        rows.append(
            {
                "measure": name,
                "joins": len(at),
                "elsewhere": len(inside),
                "inside_median": float(np.median(inside[:, i])),
                "inside_p95": line,
                "join_median": float(np.median(at[:, i])),
                "join_p95": float(np.quantile(at[:, i], 0.95)),
                "above": above,
                "chance": by_chance(above, len(at)),
            }
        )
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pieces", type=int, default=4, help="long pieces for each mode")
    parser.add_argument("--joins", type=int, default=6, help="joins in each piece")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    args = parser.parse_args()
    model = MusicGen.from_pretrained(args.model)
    columns = "measure  joins  inside: median   p95   joins: median   p95   above  by chance"
    print(f"{'join':10} {columns}")
    results = {}
    for join in JOINS:
        audio, windows = make(model, args.pieces, args.joins, join)
        results[join] = compare(model, audio, windows)
        for row in results[join]:
            print(
                f"{join:10} {row['measure']:8} {row['joins']:5} {row['inside_median']:15.2f} "
                f"{row['inside_p95']:5.2f} {row['join_median']:15.2f} {row['join_p95']:5.2f} "
                f"{row['above']:4}/{row['joins']:<3} {row['chance']:7.2f}",
                flush=True,
            )
    heard = [
        f"{join} {row['measure']}"
        for join, rows in results.items()
        for row in rows
        if row["join_median"] > row["inside_p95"] or row["chance"] < 0.01
    ]
    print("seams:", ", ".join(heard) or "none by any measure")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    record = {
        "benchmark": "join_seams",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "device": f"{jax.devices()[0].device_kind}, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax")},
        "model": args.model,
        "pieces": args.pieces,
        "joins": args.joins,
        "results": {
            join: [
                {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
                for row in rows
            ]
            for join, rows in results.items()
        },
    }
    with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
